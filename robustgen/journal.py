"""The run folder while a run is under way: nothing finished is lost, and the same command goes on.

spec.json                     what is being run, written first
examples.jsonl                one line an example, appended as they finish; sorted by id at the end
witnesses/*.safetensors       the adversarial images: parts while running, one file at the end
seconds.json                  clock, kept apart from what is the same every time
record.json                   the summary, written last
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustgen.errors import RecordError, RobustgenError, SpecError
from robustgen.record import ExampleRecord, RunRecord
from robustgen.spec import RunSpec

__all__ = ["Journal", "read_witnesses", "saved_spec"]

_FLUSH_SECONDS = 2.0
_FLUSH_ROWS = 256
_MARGIN_BYTES = 16 * 2**20


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

    Raises:
        SpecError: the folder cannot be written, is in use for something else, or the disk is too full.
        RecordError: it holds another run; the fields that differ are named.
    """

    def __init__(self, folder: Path, spec: RunSpec, *, bytes_needed: int = 0) -> None:
        self.folder = folder
        self.done: dict[int, ExampleRecord] = {}
        self.seconds: dict[str, float] = {}
        self._lines: list[str] = []
        self._images: dict[str, Tensor] = {}
        self._flushed = time.monotonic()
        _check_folder(folder, spec, bytes_needed)
        with _disk_errors(folder):
            (folder / "witnesses").mkdir(parents=True, exist_ok=True)
            self._recover()
            if not (folder / "spec.json").is_file():
                write_json(folder / "spec.json", asdict(spec))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, earlier or now."""
        return (self.folder / "record.json").is_file()

    def add(self, record: ExampleRecord, x_adv: Tensor | None) -> None:
        """File a finished example with its witness (C, H, W), if it has one."""
        self.done[record.id] = record
        self._lines.append(record.line())
        if x_adv is not None:
            self._images[str(record.id)] = x_adv.contiguous()
        if len(self._lines) >= _FLUSH_ROWS or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put what is finished on the disk: witnesses first, then the lines that speak of them."""
        self._flushed = time.monotonic()
        with _disk_errors(self.folder):
            if self._images:
                part = self.folder / "witnesses" / f"part-{time.time_ns():020d}.safetensors"
                _save_tensors(self._images, part)
                self._images = {}
            if self._lines:
                with (self.folder / "examples.jsonl").open("a", encoding="utf-8") as file:
                    file.write("\n".join(self._lines) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                self._lines = []
            write_json(self.folder / "seconds.json", self.seconds)

    def close(self, record: RunRecord) -> None:
        """Bring the folder into its final form and write record.json last."""
        self.flush()
        with _disk_errors(self.folder):
            witnesses = self.folder / "witnesses"
            parts = sorted(witnesses.glob("part-*.safetensors"))
            images = dict(read_witnesses(self.folder))
            wanted = {str(e.id): images[e.id] for e in self._sorted() if e.id in images}
            _save_tensors(wanted, witnesses / "adversarials.safetensors")
            for part in parts:
                part.unlink()
            lines = "".join(e.line() + "\n" for e in self._sorted())
            _replace(self.folder / "examples.jsonl", lines.encode())
            write_json(self.folder / "record.json", record.to_json())

    def _sorted(self) -> list[ExampleRecord]:
        return sorted(self.done.values(), key=lambda e: e.id)

    def _recover(self) -> None:
        """Read what an earlier process finished; a half-written last line is dropped."""
        path = self.folder / "examples.jsonl"
        if not path.is_file():
            return
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), 1):
            try:
                example = ExampleRecord.from_line(line)
            except (ValueError, TypeError):
                raise RecordError(f"{path}, line {number}, cannot be read; remove the folder to start again.") from None
            self.done[example.id] = example
        if len(whole) != len(raw):
            _replace(path, whole)
        if (self.folder / "seconds.json").is_file():
            self.seconds = json.loads((self.folder / "seconds.json").read_text(encoding="utf-8"))


def read_witnesses(run: Path) -> Iterator[tuple[int, Tensor]]:
    """(example id, adversarial image (C, H, W) float32) of every broken example in a run folder."""
    for path in sorted((run / "witnesses").glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 -- safe_open is no mapping
                    yield int(name), file.get_tensor(name)
        except (SafetensorError, ValueError) as error:
            raise RecordError(f"{path} cannot be read: {error}.") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old or the new one, never half of it."""
    _replace(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    draft = path.with_name(path.name + ".tmp")
    save_file(tensors or {}, draft)
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def _check_folder(folder: Path, spec: RunSpec, bytes_needed: int) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise SpecError(f"--out: {folder} is a file; name a folder.")
        if folder.is_dir():
            held = saved_spec(folder)
            if held is None and any(folder.iterdir()):
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


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RobustgenError(
                f"no space left for {folder}; make room and repeat: what was written is kept."
            ) from None
        raise RobustgenError(f"{folder} cannot be written: {error.strerror}.") from None
    except SafetensorError as error:
        raise RobustgenError(f"{folder}: witnesses cannot be written: {error}.") from None
