"""`robustgen leaderboard accept`: what a stranger claims, held against what can be measured here.

Whether an attack fails cannot be read off a run. So it is made again on examples that nobody could foresee: those which
are called robust and fall now are counted, and the exact test says whether so many can be the luck of another seed.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from robustgen import durable
from robustgen.cards import Card
from robustgen.certify.check import Redraw
from robustgen.errors import RobustgenError
from robustgen.fields import FILE_NAME, SEED, WHOLE, check_value
from robustgen.jobs import run_job
from robustgen.leaderboard.add import Means, entry_of_run, file_entry, request_here
from robustgen.leaderboard.certified import CertifiedCard
from robustgen.leaderboard.entries import Entry, EntryCard, load_entries, request_of
from robustgen.leaderboard.foreign import Submission, read_submission, told
from robustgen.leaderboard.parts import Accepted
from robustgen.leaderboard.strict import plain
from robustgen.leaderboard.submit import json_bytes, rename
from robustgen.prepare import prepare
from robustgen.progress import Progress
from robustgen.request import Request
from robustgen.runs import read_examples
from robustgen.spec import compact_ids, expand_ids
from robustgen.statistics import sampled_tail
from robustgen.verify import verify_run

__all__ = ["LEVEL", "TOLERATED", "Acceptance", "Check", "accept", "refuted"]

TOLERATED = 0.02  # of what a run calls robust, another seed of the same plan may break so much
LEVEL = 0.001  # of the test
_WORDS = ("name", "title", "architecture", "licence", "source", "date", "claimed", "origin", "accepted", "command")
_SHOWN = 8  # ids in one line


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: "holds", "fails" or "open", where it could not be looked at; and what came out."""

    name: str
    outcome: str
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """All checks of a submission, in their order, and the card that was filed, or None."""

    archive: Path
    checks: tuple[Check, ...]
    card: Path | None

    @property
    def reason(self) -> str:
        """Why nothing was filed."""
        return next((check.told.rstrip(".") for check in self.checks if check.outcome == "fails"), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How to look.

    Attributes:
        check: examples called robust that are attacked again, or certificates that fresh noise tests; 0 for none.
        draws: of fresh noise, for each certificate.
        seed: of the choice and of the attack; None for one that nobody knows.
        name: of the card instead of its own.
        trusted: python:FILE.py:FUNCTION that may be run for this submission, or None.
    """

    check: int = 50
    draws: int = 1000
    seed: int | None = None
    name: str | None = None
    trusted: str | None = None

    def __post_init__(self) -> None:
        check_value("--check", self.check, SEED)
        check_value("--draws", self.draws, WHOLE)
        if self.seed is not None:
            check_value("--seed", self.seed, SEED)
        if self.name is not None:
            check_value("--name", self.name, FILE_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What the second attack showed: ids attacked, ids that fell, flags that were raised only now."""

    again: str = ""
    fell: str = ""
    flags: tuple[str, ...] = ()


def accept(
    path: Path, folder: Path, asked: Asked, *, data_dir: Path | None, device: str, progress: Progress
) -> Acceptance:  # fmt: skip
    """Check a submission, measure it again, and file it where all of it holds.

    Args:
        path: the archive.
        folder: of the entries, made where it is missing.
        asked: how to look.
        data_dir, device: as in `evaluate`.
        progress: told how the attack goes.

    Raises:
        SpecError: the file is no submission, or something in it is not what a submission has.
    """
    with tempfile.TemporaryDirectory(prefix="robustgen-") as place:
        unpacked = Path(place) / "submission"
        unpacked.mkdir()
        held = read_submission(path, unpacked)
        work = _Work(path, held, asked, folder, data_dir=data_dir, device=device, progress=progress)
        try:
            card = work.run()
        except RobustgenError as error:
            work.fail("can be run here", told(error, path, unpacked))
            card = None
        except Exception as error:  # noqa: BLE001 -- what a stranger's file makes raise is a reason, never a traceback
            work.fail("can be run here", f"{type(error).__name__}: {told(error, path, unpacked)}")
            card = None
    return Acceptance(archive=path, checks=tuple(work.checks), card=card)


def refuted(fell: int, again: int, robust: int) -> tuple[int, float]:
    """How many of the robust examples may fall, and the probability that so many or more of a sample do by luck.

    Args:
        fell: of the sample.
        again: size of the sample, drawn at random without replacement.
        robust: examples that the run calls robust.

    Returns:
        `TOLERATED` of them, rounded up, and the tail of the hypergeometric distribution; the claim is refuted where it
        is below `LEVEL`.
    """
    most = math.ceil(TOLERATED * robust)
    return most, sampled_tail(fell, again, most, robust)


class _Work:
    """The checks of one submission."""

    def __init__(
        self, path: Path, held: Submission, asked: Asked, folder: Path, *, data_dir: Path | None, device: str,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.path, self.held, self.asked, self.folder, self.progress = path, held, asked, folder, progress
        self.seed = secrets.randbits(31) if asked.seed is None else asked.seed
        self.card: EntryCard | CertifiedCard = held.entry.card
        self.means = Means(data_dir=data_dir, device=device, weights=held.weights, origin=self.card.origin)
        if held.classifier is not None:
            self.means = replace(self.means, classifier=str(held.classifier), weights=None)
        self.checks = [
            Check("archive", "holds", f"{held.members} files, {held.size:,} bytes, sha256 {held.sha256[:12]}"),
            Check("card", "holds", "every field of its kind; its figures follow from its ids"),
            Check("record", "holds", "the one that the card names, and says the same"),
        ]

    def holds(self, name: str, text: str) -> None:
        self.checks.append(Check(name, "holds", plain(text)))

    def fail(self, name: str, text: str) -> None:
        self.checks.append(Check(name, "fails", plain(text)))

    def run(self) -> Path | None:
        """All checks until one fails; the card that was filed."""
        if not self._new() or not self._code() or not self._verified():
            return None
        claimed = self.card.claimed if isinstance(self.card, EntryCard) else None
        entry = entry_of_run(self.held.run, self.means, name=self.card.name, claimed=claimed)
        if not self._same(entry):
            return None
        again = self._attacked() if isinstance(self.card, EntryCard) else Again()
        if again is None:
            return None
        return self._file(entry, again)

    def _new(self) -> bool:
        """The board has no card of this run, and none of this name."""
        name = self.asked.name or self.card.name
        filed = load_entries(self.folder) if self.folder.is_dir() else ()
        for other in filed:
            if other.card.identity == self.card.identity:
                self.fail("new", f"this run is on the board already, as {other.card.name}")
                return False
            if other.card.name == name:
                self.fail("new", f"the board has another card called {name}; choose a name with --name")
                return False
        self.holds("new", f"not among {len(filed)} cards")
        return True

    def _code(self) -> bool:
        """Code that a stranger wrote is run only where the user names it as trusted."""
        origin, trusted = self.card.origin, self.asked.trusted
        if origin is None or not origin.code:
            if trusted is not None:
                self.fail("code", "this submission needs no code; drop --classifier")
            return trusted is None
        if trusted is None:
            self.fail(
                "code",
                f"its classifier is code ({origin.classifier}), and code of strangers is not run; get the file, read "
                "it, and if you trust it name it with --classifier python:FILE.py:FUNCTION",
            )
            return False
        self.means = replace(self.means, classifier=trusted)
        self.holds("code", f"{trusted} is run because you named it; its network has the weights of the record or none")
        return True

    def _verified(self) -> bool:
        """`robustgen verify`, with fresh noise for certificates."""
        certified = isinstance(self.card, CertifiedCard)
        fresh = min(self.asked.check, self.card.n) if certified else 0
        found = verify_run(
            self.held.run, weights=self.means.weights, data_dir=self.means.data_dir, device=self.means.device,
            classifier=self.means.classifier if certified else self.means.instead(self.card.spec.classifier),
            redraw=Redraw(fresh=fresh, draws=self.asked.draws, seed=self.seed), progress=self.progress,
        )  # fmt: skip
        for line in found.checked:
            name, _, text = line.partition(": ")
            self.holds(name if text else "verify", text or line)
        for line in found.wrong[:_SHOWN]:
            self.fail("verify", line.replace(f"{self.held.run}/", "run/").replace(str(self.held.run), "the run"))
        if found.doubtful:
            shown = ", ".join(map(str, found.doubtful[:_SHOWN]))
            self.checks.append(Check("rounding", "open", f"{found.doubt}: {len(found.doubtful)} examples ({shown})"))
        return found.holds

    def _same(self, entry: Entry) -> bool:
        """A card made here of the same run says the same, pictures included."""
        mine, theirs = (card.to_json() for card in (entry.card, self.card))
        for key in mine:
            if key not in _WORDS and json_bytes(mine[key]) != json_bytes(theirs.get(key)):
                self.fail("made again", f"{key} of the card is not what its run gives")
                return False
        self.holds("made again", "its command leads to the same specification; the run gives the same card")
        return True

    def _attacked(self) -> Again | None:
        """Attack some of the examples again that are called robust; None where the claim is refuted."""
        card = self.card
        assert isinstance(card, EntryCard)  # a certification has no attack
        robust = expand_ids(card.robust)
        chosen = _choose(robust, self.asked.check, self.seed)
        if not chosen:
            why = "no example is called robust" if not robust else "--check 0"
            self.checks.append(Check("attacked again", "open" if robust else "holds", f"nothing: {why}"))
            return Again()
        request = {
            **request_of(card.spec, card.origin), "ids": compact_ids(chosen), "n": None, "seed": self.seed,
            "precision": "float32",
        }  # fmt: skip
        folder = self.held.run.parent / "again"
        job = prepare(Request(**request_here(request, self.means)), device=self.means.device, out=folder)
        record = run_job(job, self.progress)
        fell = [example.id for example in read_examples(folder) if not example.robust]
        most, chance = refuted(len(fell), len(chosen), len(robust))
        shown = f" ({', '.join(map(str, sorted(fell)[:_SHOWN]))}{' and others' * (len(fell) > _SHOWN)})" if fell else ""
        text = (
            f"plan {card.spec.plan}, seed {self.seed}: {len(fell)} of {len(chosen)} fell{shown}, drawn from "
            f"{len(robust)} called robust; that at most {most} of these can fall has p = {chance:.2g} (level {LEVEL:g})"
        )
        if chance < LEVEL:
            self.fail("attacked again", f"refuted: {text}")
            return None
        self.holds("attacked again", text)
        flags = tuple(flag for flag in record.flags if flag not in card.flags)
        if flags:
            self.checks.append(Check("flags", "open", f"raised only now: {', '.join(flags)}"))
        return Again(again=compact_ids(chosen), fell=compact_ids(sorted(fell)), flags=flags)

    def _file(self, entry: Entry, again: Again) -> Path:
        """Write card, record, network and licence; the card comes last."""
        name = self.asked.name or self.card.name
        accepted = Accepted(
            date=datetime.now(UTC).date().isoformat(), archive_sha256=self.held.sha256,
            licence=self.held.licence.splitlines()[0].replace("\t", " ")[:200], seed=self.seed, again=again.again,
            fell=again.fell, flags=again.flags,
            told=tuple(f"{check.name}: {check.told}" for check in self.checks if check.outcome != "fails"),
        )  # fmt: skip
        card = replace(rename(entry.card, name), accepted=accepted)
        beside = {f"licences/{name}.txt": f"{self.held.licence}\n".encode()}
        if self.held.weights is not None:
            beside[f"classifiers/{name}.safetensors"] = self.held.weights.read_bytes()
        if self.held.classifier is not None:
            network = replace(Card.load(self.held.classifier), weights=f"{name}.safetensors")
            beside[f"classifiers/{name}.json"] = json_bytes(asdict(network))
        with durable.disk_errors(self.folder):
            for file, content in beside.items():
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                durable.replace(self.folder / file, content)
        path = file_entry(replace(entry, card=card), self.folder)
        self.holds("filed", str(path))
        return path


def _choose(robust: Sequence[int], number: int, seed: int) -> list[int]:
    """So many of these ids, as a hash of seed and id has it; ascending."""

    def place(id_: int) -> bytes:
        return hashlib.sha256(f"{seed}/accept/{id_}".encode()).digest()

    return sorted(sorted(robust, key=place)[:number])
