"""The run folder while a run is under way: nothing finished is lost, and the same command goes on.

spec.json                     what is being run, written first
examples.jsonl                one line an example, appended as they finish; sorted by id at the end
witnesses/*.safetensors       the adversarial images: parts while running, packed at the end
seconds.json                  clock, kept apart from what is the same every time
record.json                   the summary, written last
progress.jsonl, lock          only while it runs: what unfinished examples have been through; who writes

Where torchrun shares a run, rank R > 0 appends to examples-R.jsonl, progress-R.jsonl and seconds-R.json, and rank 0
merges them at the end. Any number of ranks goes on with what any other number left.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from robustgen.durable import FolderLock, append, disk_errors, remove, replace, write_json
from robustgen.errors import RecordError, SpecError
from robustgen.record import ExampleRecord, RunRecord
from robustgen.spec import RunSpec
from robustgen.witnesses import pack_parts, save_part, unpack

__all__ = ["Journal", "saved_spec"]

_FLUSH_SECONDS = 2.0
_FLUSH_ROWS = 256
_MARGIN_BYTES = 16 * 2**20
_LEFTOVERS = (
    "examples-*.jsonl", "progress*.jsonl", "seconds-*.json", "*.tmp", "witnesses/*.tmp", "witnesses/part-*",
    "witnesses/near-*", "lock",
    ".write-probe",
)  # fmt: skip
_OPENED = {"lock", "witnesses", "spec.json.tmp", ".write-probe"}  # what a process may leave before it writes spec.json


def saved_spec(folder: Path) -> RunSpec | None:
    """The specification in a run folder, or None where there is none."""
    path = folder / "spec.json"
    if not path.is_file():
        return None
    try:
        return RunSpec.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    except ValueError as error:
        raise RecordError(f"{path} is not valid JSON: {error}.") from None


class Journal:
    """Writes a run folder; opened on one that was left half-way, it knows what is finished.

    Args:
        folder: the run folder; created.
        spec: what is being run.
        bytes_needed: the most that the run can write, checked against the free space before any work.
        rank: which process of those that share the run; rank 0 opens the folder before the others.

    Attributes:
        done: example id -> its record, for finished examples.
        passed: stage -> example id -> what that stage left of an unfinished one.
        seconds: stage -> clock of this rank.

    Raises:
        SpecError: the folder cannot be written, is in use by another process or for something else, or the disk is
            too full.
        RecordError: it holds another run; the fields that differ are named.
    """

    def __init__(self, folder: Path, spec: RunSpec, *, bytes_needed: int = 0, rank: int = 0) -> None:
        self.folder = folder
        self.done: dict[int, ExampleRecord] = {}
        self.passed: dict[str, dict[int, dict[str, Any]]] = {}
        self.seconds: dict[str, float] = {}
        self._suffix = f"-{rank}" if rank else ""
        self._lines: list[str] = []
        self._steps: list[str] = []
        self._images: dict[str, dict[int, Tensor]] = {"part": {}, "near": {}}
        self._parts = 0
        self._flushed = time.monotonic()
        if folder.is_dir() and self.finished and saved_spec(folder) == spec:
            self._lock = None
            with suppress(OSError):  # a crash in the last moment, or a disk that cannot be written any more
                self._tidy()
            return
        _check_folder(folder, spec, bytes_needed)
        with disk_errors(folder):
            (folder / "witnesses").mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder) if rank == 0 else None
            try:
                self._open(spec)
            except BaseException:
                self.release()
                raise

    def _open(self, spec: RunSpec) -> None:
        if self._lock is not None:
            unpack(self.folder / "witnesses")
        self.recover()
        if not (self.folder / "spec.json").is_file():
            write_json(self.folder / "spec.json", asdict(spec))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, earlier or now."""
        return (self.folder / "record.json").is_file()

    def add(self, record: ExampleRecord, x_adv: Tensor | None) -> None:
        """File a finished example with its witness (C, H, W), if it has one."""
        self.done[record.id] = record
        self._lines.append(record.line())
        self._keep(record.id, x_adv)

    def step(
        self, stage: str, id_: int, left: dict[str, Any], x_adv: Tensor | None = None, near: Tensor | None = None
    ) -> None:
        """Note what a stage left of an example that is not finished, so that a resumed run need not repeat it.

        Args:
            stage, id_, left: what is noted.
            x_adv: the witness of an example that goes on although it was broken.
            near: the point that came nearest, where it will be scored.
        """
        self.passed.setdefault(stage, {})[id_] = left
        self._steps.append(json.dumps({"stage": stage, "id": id_, **left}, sort_keys=True, allow_nan=False))
        self._keep(id_, x_adv, near)

    def _keep(self, id_: int, x_adv: Tensor | None, near: Tensor | None = None) -> None:
        for kind, image in (("part", x_adv), ("near", near)):
            if image is not None:
                self._images[kind][id_] = image
        rows = len(self._lines) + len(self._steps)
        if rows >= _FLUSH_ROWS or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put what is finished on the disk: witnesses first, then the lines that speak of them."""
        self._flushed = time.monotonic()
        with disk_errors(self.folder):
            for kind, images in self._images.items():
                if images:
                    self._parts += 1
                    name = f"{kind}-{time.time_ns():020d}-{self._parts}{self._suffix}"
                    save_part(images, self.folder / "witnesses", name)
                    images.clear()
            for stem, lines in (("progress", self._steps), ("examples", self._lines)):
                if lines:
                    append(self.folder / f"{stem}{self._suffix}.jsonl", ("\n".join(lines) + "\n").encode())
                    lines.clear()
            write_json(self.folder / f"seconds{self._suffix}.json", self.seconds)

    def all_seconds(self) -> dict[str, float]:
        """Stage -> clock of the slowest rank."""
        clocks = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("seconds*.json")]
        return {stage: max(clock.get(stage, 0.0) for clock in clocks) for clock in clocks for stage in clock}

    def close(self, record: RunRecord) -> None:
        """Bring the folder into its final form, write record.json, and only then remove what a resume would need."""
        self.flush()
        with disk_errors(self.folder):
            examples = sorted(self.done.values(), key=lambda e: e.id)
            pack_parts(self.folder / "witnesses", [e.id for e in examples if e.distance is not None])
            replace(self.folder / "examples.jsonl", "".join(e.line() + "\n" for e in examples).encode())
            write_json(self.folder / "seconds.json", self.all_seconds())
            write_json(self.folder / "record.json", record.stored())
            self._tidy()
        self.release()

    def _tidy(self) -> None:
        for pattern in _LEFTOVERS:
            for path in self.folder.glob(pattern):
                remove(path)

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()

    def recover(self) -> None:
        """Read what any process finished; a half-written last line is dropped."""
        for path in sorted(self.folder.glob("examples*.jsonl")):
            for line in self._whole_lines(path, ExampleRecord.from_line):
                self.done[line.id] = line
        for path in sorted(self.folder.glob("progress*.jsonl")):
            for left in self._whole_lines(path, json.loads):
                self.passed.setdefault(left.pop("stage"), {})[left.pop("id")] = left
        clock = self.folder / f"seconds{self._suffix}.json"
        if clock.is_file() and not self.seconds:
            self.seconds = json.loads(clock.read_text(encoding="utf-8"))

    def _whole_lines(self, path: Path, read: Any) -> list[Any]:
        """Each line, read; this rank's own file is cut where its last line is not whole."""
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = []
        for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), 1):
            try:
                lines.append(read(line))
            except (ValueError, TypeError):
                raise RecordError(f"{path}, line {number}, cannot be read; remove the folder to start again.") from None
        if len(whole) != len(raw) and path.stem.removeprefix("examples").removeprefix("progress") == self._suffix:
            replace(path, whole)
        return lines


def _check_folder(folder: Path, spec: RunSpec, bytes_needed: int) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise SpecError(f"--out: {folder} is a file; name a folder.")
        if folder.is_dir():
            held = saved_spec(folder)
            if held is None and {path.name for path in folder.iterdir()} - _OPENED:
                raise SpecError(f"--out: {folder} is not empty and holds no run; name another folder.")
            if held is not None and held != spec:
                fields_ = "; ".join(spec.differences(held))
                raise RecordError(f"--out: {folder} holds another run (asked / there: {fields_}); name another folder.")
        free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.is_dir())).free
        needed = bytes_needed + _MARGIN_BYTES
        if free < needed:
            sizes = f"{free / 2**20:.0f} MiB free, the run may need {needed / 2**20:.0f} MiB"
            raise SpecError(f"--out: {folder} has {sizes}; make room or name another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SpecError(f"--out: {folder} cannot be written ({error.strerror}); name another folder.") from None
