"""The run folder while a run is under way: nothing finished is lost, and the same command goes on.

spec.json                     what is being run, written first
examples.jsonl                one line an example, appended as they finish; sorted by id at the end
witnesses/                    the adversarial images: appended to part.bin while running, packed at the end
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from robustgen.durable import Appender, FolderLock, cut, disk_errors, remove, replace, write_json
from robustgen.errors import RecordError, SpecError
from robustgen.example import ExampleRecord
from robustgen.record import RunRecord
from robustgen.spec import RunSpec
from robustgen.witnesses import Parts, pack_parts, part_record, slot_key, unpack, whole_bytes

__all__ = ["Journal", "saved_spec"]

_SYNC_SECONDS = 2.0
_APPENDED = {
    "part": "witnesses/part{}.bin", "near": "witnesses/near{}.bin", "progress": "progress{}.jsonl",
    "examples": "examples{}.jsonl",
}  # fmt: skip
_MARGIN_BYTES = 16 * 2**20
_LEFTOVERS = (
    "examples-*.jsonl", "progress*.jsonl", "seconds-*.json", "*.tmp", "witnesses/*.tmp", "witnesses/part*.bin",
    "witnesses/near*.bin", "lock",
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
        shape: (C, H, W) of the images.
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

    def __init__(
        self, folder: Path, spec: RunSpec, shape: tuple[int, int, int], *, bytes_needed: int = 0, rank: int = 0
    ) -> None:
        self.folder = folder
        self.done: dict[int, ExampleRecord] = {}
        self.passed: dict[str, dict[int, dict[str, Any]]] = {}
        self.seconds: dict[str, float] = {}
        self._shape = shape
        self._suffix = f"-{rank}" if rank else ""
        self._files = {kind: Appender(folder / pattern.format(self._suffix)) for kind, pattern in _APPENDED.items()}
        self._synced = time.monotonic()
        if folder.is_dir() and self.finished and saved_spec(folder) == spec:
            self._lock = None
            with suppress(OSError):  # a crash in the last moment, or a disk that cannot be written any more
                self._tidy()
            return
        if rank == 0:  # the others come after it
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
        self._cut_torn_ends()
        self.recover()
        if not (self.folder / "spec.json").is_file():
            write_json(self.folder / "spec.json", spec.table())

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, earlier or now."""
        return (self.folder / "record.json").is_file()

    def add(self, record: ExampleRecord, x_adv: Tensor | None) -> None:
        """File a finished example with its witness (C, H, W), if it has one."""
        self.done[record.id] = record
        self._append(record.id, {"part": x_adv}, "examples", record.line())

    def step(
        self, stage: str, id_: int, left: dict[str, Any], x_adv: Tensor | None = None, near: Tensor | None = None,
        *, slot: int = 0,
    ) -> None:  # fmt: skip
        """Note what a stage left of an example that is not finished, so that a resumed run need not repeat it.

        Args:
            stage, id_, left: what is noted.
            x_adv: the witness of an example that goes on although it was broken.
            near: the point that came nearest, where it will be scored.
            slot: of the stage, from 1, where every stage keeps a witness of its own; else 0.
        """
        self.passed.setdefault(stage, {})[id_] = left
        said = {"stage": stage, "id": id_, **left} | ({"slot": slot} if slot else {})
        line = json.dumps(said, sort_keys=True, allow_nan=False)
        self._append(slot_key(id_, slot), {"part": x_adv, "near": near}, "progress", line)

    def _append(self, key: int, images: dict[str, Tensor | None], kind: str, line: str) -> None:
        """Hand images, then the line that speaks of them, to the system; force them to the disk now and then."""
        with disk_errors(self.folder):
            for name, image in images.items():
                if image is not None:
                    self._files[name].add(part_record(key, image))
            self._files[kind].add(f"{line}\n".encode())
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Force to the disk what was appended: images first."""
        self._synced = time.monotonic()
        with disk_errors(self.folder):
            for file in self._files.values():
                file.sync()
            write_json(self.folder / f"seconds{self._suffix}.json", self.seconds)

    def parts(self, kind: str = "part") -> Parts:
        """The images of all ranks so far."""
        return Parts(self.folder / "witnesses", kind, self._shape)

    def all_seconds(self) -> dict[str, float]:
        """Stage -> clock of the slowest rank."""
        clocks = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("seconds*.json")]
        return {stage: max(clock.get(stage, 0.0) for clock in clocks) for clock in clocks for stage in clock}

    def close(self, record: RunRecord, slots: Sequence[str] = ()) -> None:
        """Bring the folder into its final form, write record.json, and only then remove what a resume would need.

        `slots` are the labels of the attacks of which each keeps a witness of its own, from slot 1.
        """
        self.flush()
        with disk_errors(self.folder):
            examples = sorted(self.done.values(), key=lambda e: e.id)
            witnesses = self.folder / "witnesses"
            pack_parts(witnesses, self.parts(), [e.id for e in examples if e.distance is not None])
            pack_parts(witnesses, self.parts("near"), [e.id for e in examples if e.distance is None], "nearest")
            for slot, label in enumerate(slots, 1):
                others = [e.id for e in examples if label in (e.distances or {}) and e.broken_by != label]
                pack_parts(witnesses, self.parts(), others, f"by-{label}", slot=slot)
            replace(self.folder / "examples.jsonl", "".join(e.line() + "\n" for e in examples).encode())
        self.settle(record, self.all_seconds())

    def settle(self, record: RunRecord, seconds: dict[str, float]) -> None:
        """Write the clock and record.json, and let the folder go; all that a run of runs has to write itself."""
        with disk_errors(self.folder):
            write_json(self.folder / "seconds.json", seconds)
            write_json(self.folder / "record.json", record.stored())
            self._tidy()
        self.release()

    def _tidy(self) -> None:
        for pattern in _LEFTOVERS:
            for path in self.folder.glob(pattern):
                remove(path)

    def release(self) -> None:
        """Let other processes have the folder."""
        for file in self._files.values():
            file.close()
        if self._lock is not None:
            self._lock.release()

    def _cut_torn_ends(self) -> None:
        """Shorten this rank's own files to what is whole in them."""
        for kind, file in self._files.items():
            if file.path.is_file():
                lines = kind in ("examples", "progress")
                cut(file.path, _whole_lines(file.path) if lines else whole_bytes(file.path, self._shape))

    def recover(self) -> None:
        """Read what any process finished.

        A half-written last line is dropped, and so is one whose witness a power cut took.
        """
        parts = self.parts()
        for path in sorted(self.folder.glob("examples*.jsonl")):
            for example in _read_lines(path, ExampleRecord.from_line):
                if example.distance is None or example.id in parts:
                    self.done[example.id] = example
        for path in sorted(self.folder.glob("progress*.jsonl")):
            for left in _read_lines(path, json.loads):
                stage, id_, slot = left.pop("stage"), left.pop("id"), left.pop("slot", 0)
                if not left.get("broken") or slot_key(id_, slot) in parts:
                    self.passed.setdefault(stage, {})[id_] = left
        clock = self.folder / f"seconds{self._suffix}.json"
        if clock.is_file() and not self.seconds:
            self.seconds = json.loads(clock.read_text(encoding="utf-8"))


def _whole_lines(path: Path) -> int:
    """How many bytes of a file are whole lines."""
    return path.read_bytes().rfind(b"\n") + 1


def _read_lines(path: Path, read: Callable[[str], Any]) -> Iterator[Any]:
    """Each whole line, read."""
    raw = path.read_bytes()
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines(), 1):
        try:
            yield read(line)
        except (ValueError, TypeError):
            raise RecordError(f"{path}, line {number}, cannot be read; remove the folder to start again.") from None


def _check_folder(folder: Path, spec: RunSpec, bytes_needed: int) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise SpecError(f"--out: {folder} is a file; name a folder.")
        if folder.is_dir():
            held = saved_spec(folder)
            if held is None and {path.name for path in folder.iterdir()} - _OPENED:
                raise SpecError(f"--out: {folder} is not empty and holds no run; name another folder.")
            if held is not None and held != spec:
                FolderLock(folder).release()  # whoever writes here now may have been asked the same, in another form
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
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise SpecError(f"--out: {folder} cannot be written ({error.strerror}); name another folder.") from None
