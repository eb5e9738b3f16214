"""One file for a submission: a zip of fixed names with nothing compressed, so equal content gives equal bytes.

card.json                what is claimed
licence.txt              under which its maker gives it away
run/...                  the run folder: spec, record, examples and witnesses, or certificates
classifier.json          only of a classifier that does not come with robustgen: its card, which is data
weights.safetensors      only of such a one

Read as if an enemy had written it: names, kinds, sizes, order and places of the members are checked before the first
one is unpacked, nothing but these names is ever written, and what is read is counted.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from robustgen.durable import disk_errors, replace
from robustgen.errors import ArtifactError

__all__ = ["CLASSIFIER", "WEIGHTS", "pack", "unpack"]

CLASSIFIER, WEIGHTS = "classifier.json", "weights.safetensors"
_MEGA = 1_000_000
_LARGEST = 1000 * _MEGA  # bytes of an archive
_MOST = 600  # members
_ALLOWED: dict[str, int] = {
    r"card\.json|run/record\.json": 16 * _MEGA,
    r"licence\.txt|run/spec\.json|run/seconds\.json|classifier\.json": _MEGA,
    r"run/(examples|certificates)\.jsonl": 200 * _MEGA,
    r"run/witnesses/adversarials-[0-9]{5}\.safetensors": 80 * _MEGA,
    r"weights\.safetensors": _LARGEST,
}
_END = struct.Struct("<4s4H2LH")  # the last record of a zip: disks, members, size and place of the directory, comment
_HEADER = 30  # bytes before the name of a member
_CHUNK = 2**20


def pack(path: Path, members: Mapping[str, bytes]) -> str:
    """Write an archive; the sha256 of its bytes, which depend on the members alone.

    Raises:
        ArtifactError: a member that no archive holds, or more bytes than one may have.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            if len(members[name]) > _limit(name):
                raise ArtifactError(f"{name} has {len(members[name]):,} bytes, at most {_limit(name):,} are accepted.")
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, members[name])
    content = stream.getvalue()
    if len(content) > _LARGEST or len(members) > _MOST:
        raise ArtifactError(f"the archive would have {len(members)} members and {len(content):,} bytes; too many.")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content)
    return hashlib.sha256(content).hexdigest()


def unpack(path: Path, folder: Path) -> tuple[dict[str, Path], str]:
    """Check an archive and write its members under a folder that is empty; their paths by name, and its sha256.

    Raises:
        ArtifactError: it is no archive that `pack` could have written; one sentence says why.
    """
    with _opened(path) as file:
        _check_end(path, file)
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                _check_members(path, archive, members)
                written = {info.filename: _extract(path, archive, info, folder) for info in members}
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
            raise ArtifactError(f"{path} is damaged: {error}.") from None
        file.seek(0)
        return written, hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> io.BufferedReader:
    """The file, if it is a plain one of a size that makes sense; a link is not followed, a device not waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link; name the archive itself.")
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
        os.close(handle)
        what = f"has {found.st_size:,} bytes, at most {_LARGEST:,} are read"
        raise ArtifactError(f"{path} {what if stat.S_ISREG(found.st_mode) else 'is no plain file'}.")
    return os.fdopen(handle, "rb")


def _check_end(path: Path, file: io.BufferedReader) -> None:
    """The end of the file says how many members there are, before any list of them is built."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size))
    end = file.read()
    sign, *_, members, length, _, comment = _END.unpack(end) if len(end) == _END.size else (b"", 0, 0, 0, 0)
    if sign != b"PK\5\6" or comment:
        raise ArtifactError(f"{path} is no archive of robustgen submit: a zip, and nothing after it, is expected.")
    if not 0 < members <= _MOST or length > _MOST * 200:
        raise ArtifactError(f"{path} announces {members:,} members in {length:,} bytes, at most {_MOST} are read.")


def _limit(name: str) -> int:
    """Bytes that a member of this name may have."""
    for pattern, most in _ALLOWED.items():
        if re.fullmatch(pattern, name):
            return most
    raise ArtifactError(f"{name!r} is no member of a submission; see robustgen submit --help for what is.")


def _check_members(path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    """Refuse what `pack` never writes: other names, kinds and sizes, members that overlap or leave gaps."""
    seen, place = set[str](), 0
    for info in members:
        name = info.orig_filename
        try:
            most = _limit(name)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
        kind = stat.S_IFMT(info.external_attr >> 16)
        faults = {
            "stands twice": name in seen,
            "is a link, a device or a folder, not a file": kind not in (0, stat.S_IFREG),
            "is compressed or encrypted; members are stored as they are": (info.compress_type, info.flag_bits) != (0, 0)
            or info.compress_size != info.file_size,
            f"declares {info.file_size:,} bytes, at most {most:,} are read": info.file_size > most,
            "does not lie where the one before it ends": info.header_offset != place,
        }
        for what, true in faults.items():
            if true:
                raise ArtifactError(f"{path}: {name} {what}.")
        seen.add(name)
        place += _HEADER + len(name) + info.file_size
    if place != archive.start_dir:
        raise ArtifactError(f"{path}: its members do not end where its list begins; sizes are not what they say.")


def _extract(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> Path:
    """Write one member, counting; its name is one of the fixed ones."""
    target, count = folder / info.filename, 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            count += len(chunk)
            file.write(chunk)
    if count != info.file_size:
        raise ArtifactError(f"{path}: {info.filename} has {count:,} bytes, and declares {info.file_size:,}.")
    return target
