"""Writing that survives kill -9 and a power cut: files that are whole or absent, one writer a folder.

A file is written under another name, forced to the disk, renamed, and the rename forced to the disk: in this order no
crash can leave half of it under its own name. Appended lines are forced before anything that speaks of them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustgen.errors import RobustgenError, SpecError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock", "append", "disk_errors", "remove", "replace", "write_json"]


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old or the new one, never half of it."""
    draft = path.with_name(path.name + ".tmp")
    _write(draft, content, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    draft.replace(path)
    _settle(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON by `replace`: sorted keys, no NaN or infinity, which JSON has not."""
    replace(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; a crash can cut only what is being added."""
    fresh = not path.exists()
    _write(path, content, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if fresh:
        _settle(path.parent)


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    path.unlink(missing_ok=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Unbuffered, and forced to the disk."""
    file = os.open(path, mode, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)


def _settle(folder: Path) -> None:
    """Force a folder's list of names to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderLock:
    """At most one process writes a folder; the lock ends with its process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise SpecError(
                f"--out: {folder} is being written by another process (pid {holder}); wait for it, or name another "
                "folder."
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let others in and leave no trace."""
        if self._file.closed:
            return
        try:
            remove(self.path)
        finally:
            self._file.close()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the disk refuses, in a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RobustgenError(
                f"no space left for {folder}; make room and repeat: what was written is kept."
            ) from None
        raise RobustgenError(f"{folder} cannot be written: {error.strerror}.") from None
