"""`robustgen submit`: a finished run as one file for the keeper of a board."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustgen.cards import Card
from robustgen.errors import ArtifactError, SpecError
from robustgen.fields import FILE_NAME, check_value
from robustgen.leaderboard.add import Means, verified_entry
from robustgen.leaderboard.archive import CLASSIFIER, WEIGHTS, pack
from robustgen.leaderboard.certified import CertifiedCard, certification_command
from robustgen.leaderboard.entries import Claimed, EntryCard, command_of
from robustgen.leaderboard.foreign import read_submission
from robustgen.leaderboard.parts import Origin
from robustgen.usercode import PYTHON

__all__ = ["Submitted", "json_bytes", "rename", "submit_run"]

_RUN = ("spec.json", "record.json", "seconds.json", "examples.jsonl", "certificates.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """An archive that was written: its members with their bytes, and the card in it."""

    path: Path
    sha256: str
    members: dict[str, int]
    card: EntryCard | CertifiedCard


def submit_run(
    run: Path, out: Path | None, *, licence: str, name: str | None = None, claimed: Claimed | None = None,
    classifier: str | None = None, weights: Path | None = None, data_dir: Path | None = None, device: str = "auto",
) -> Submitted:  # fmt: skip
    """Verify a run and pack it with its card, its licence and, if it does not come with robustgen, its network.

    The same folder gives the same bytes: the card has the day on which record.json was written.

    Args:
        run: a folder that `robustgen eval` or `robustgen certify` left.
        out: the archive; None for NAME.zip in the current folder.
        licence: under which record, witnesses and weights are given away, in words or as a file.
        name, claimed: as in `add_run`.
        classifier: a card file (.json) or python:FILE.py:FUNCTION, for one that does not come with robustgen.
        weights: file of weights that the run was made with, .safetensors.
        data_dir, device: as in `evaluate`.

    Raises:
        SpecError, RecordError, ArtifactError: no finished run, or one that cannot be an entry.
    """
    if name is not None:
        check_value("--name", name, FILE_NAME)
    text = _licence(licence)
    carried = _carried(classifier, weights)
    origin = _origin("run", classifier, carried)
    means = Means(data_dir=data_dir, device=device, classifier=classifier, weights=weights, origin=origin)
    entry = verified_entry(run, means, name=name, claimed=claimed)
    day = datetime.fromtimestamp((run / "record.json").stat().st_mtime, UTC).date().isoformat()
    card = rename(replace(entry.card, date=day), entry.card.name)
    members = {"card.json": json_bytes(card.to_json()), "licence.txt": f"{text}\n".encode(), **carried, **_files(run)}
    path = out or Path(f"{card.name}.zip")
    _read_back(path.name, members)
    digest = pack(path, members)
    return Submitted(path=path, sha256=digest, members={k: len(v) for k, v in sorted(members.items())}, card=card)


def _read_back(name: str, members: dict[str, bytes]) -> None:
    """Refuse here what the keeper of a board would have to refuse there, before the archive is written."""
    with tempfile.TemporaryDirectory(prefix="robustgen-") as place:
        inside = Path(place) / "inside"
        inside.mkdir()
        pack(Path(place) / name, members)
        read_submission(Path(place) / name, inside)


def rename(card: EntryCard | CertifiedCard, name: str) -> Any:
    """The card under another name: what lies beside it is named after it, and so its command changes too."""
    if card.origin is None:
        return replace(card, name=name)
    origin = Origin(
        classifier=card.origin.classifier if card.origin.code else _beside(name, card.origin.classifier),
        weights=_beside(name, card.origin.weights),
    )
    command = (
        certification_command(card.spec, origin) if isinstance(card, CertifiedCard) else command_of(card.spec, origin)
    )
    return replace(card, name=name, origin=origin, command=command)


def json_bytes(table: Any) -> bytes:
    """JSON with sorted keys, the same for the same content."""
    return (json.dumps(table, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _beside(name: str, file: str) -> str:
    return f"classifiers/{name}{Path(file).suffix}" if file else ""


def _licence(text: str) -> str:
    """In words, or the content of a file."""
    path = Path(text)
    try:
        held = path.read_text(encoding="utf-8") if len(text) < 1000 and path.is_file() else text
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"--licence {text}: cannot be read: {error}.") from None
    if not held.strip() or not all(line.isprintable() for line in held.replace("\t", " ").splitlines()):
        raise SpecError("--licence must say in words (MIT, CC-BY-4.0, ...) or in a text file how the run may be used.")
    return held.strip()


def _carried(classifier: str | None, weights: Path | None) -> dict[str, bytes]:
    """Members for a network that does not come with robustgen."""
    if classifier is not None and classifier.endswith(".json"):
        if weights is not None:
            raise SpecError(f"--weights: name the file in {classifier} instead, in its field 'weights'.")
        card = Card.load(Path(classifier))
        if card.weights is None:
            raise SpecError(f"{classifier} names no weights, so nobody could run it; add the field 'weights'.")
        content = json_bytes(asdict(replace(card, weights=WEIGHTS)))
        return {CLASSIFIER: content, WEIGHTS: _weights(Path(classifier).parent / card.weights)}
    if classifier is not None and not re.fullmatch(rf"{PYTHON}.*\.py:\w+", classifier):
        raise SpecError(f"--classifier must be a card file (.json) or {PYTHON}FILE.py:FUNCTION, got '{classifier}'.")
    return {} if weights is None else {WEIGHTS: _weights(weights)}


def _weights(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        raise SpecError(
            f"weights {path}: only safetensors are accepted; convert them with safetensors.torch.save_file."
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"weights {path} cannot be read: {error.strerror}.") from None


def _origin(name: str, classifier: str | None, carried: dict[str, bytes]) -> Origin | None:
    """What the card says of it."""
    if classifier is None and not carried:
        return None
    if CLASSIFIER in carried:
        return Origin(classifier=_beside(name, CLASSIFIER))
    code = "" if classifier is None else f"{PYTHON}{Path(classifier.removeprefix(PYTHON)).name}"
    return Origin(classifier=code, weights=_beside(name, WEIGHTS) if carried else "")


def _files(run: Path) -> dict[str, bytes]:
    """The run folder, without what only a run under way needs."""
    files = {f"run/{name}": run / name for name in _RUN if (run / name).is_file()}
    files |= {f"run/witnesses/{path.name}": path for path in (run / "witnesses").glob("adversarials-*.safetensors")}
    return {name: path.read_bytes() for name, path in files.items()}
