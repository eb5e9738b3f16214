"""Writing that survives kill -9 and a power cut: files that are whole or absent, one writer a folder.

A file is written under another name, forced to the disk, renamed, and the rename forced to the disk: in this order no
crash can leave half of it under its own name. What is appended is with the system at once, and forced now and then.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustgen.errors import BusyError, RobustgenError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

__all__ = ["Appender", "FolderLock", "cut", "disk_errors", "remove", "replace", "write_json"]


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old or the new one, never half of it."""
    draft = path.with_name(path.name + ".tmp")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write(file, content)
        os.fsync(file)
    finally:
        os.close(file)
    draft.replace(path)
    _settle(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON by `replace`: sorted keys, no NaN or infinity, which JSON has not."""
    replace(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


class Appender:
    """Adds to the end of a file, unbuffered: what was added survives kill -9 at once, a power cut after `sync`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._fresh = False

    def add(self, content: bytes) -> None:
        """Write; a crash can cut only what is being added."""
        if self._file is None:
            self._fresh = not self.path.exists()
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        _write(self._file, content)

    def sync(self) -> None:
        """Force to the disk what was added, and the file's name when it is new."""
        if self._file is not None:
            os.fsync(self._file)
            if self._fresh:
                _settle(self.path.parent)
                self._fresh = False

    def close(self) -> None:
        """Give the file back; the next `add` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def cut(path: Path, size: int) -> None:
    """Shorten a file to so many bytes."""
    if path.stat().st_size > size:
        os.truncate(path, size)


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    path.unlink(missing_ok=True)


def _write(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


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
            raise BusyError(
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
