"""Check a finished certification: from its journal alone, and on request by drawing votes again.

Identity, rows, the stop of every example, its class, its radius, and all totals are computed anew from the counts that
the journal holds. That the counts are those of this classifier needs votes: `fresh` draws them under other noise and
tests each certificate's claim, `replay` repeats the very draws of the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustgen.certify.certify import ABSTAIN, Certificate, certify
from robustgen.certify.design import Design, threshold_for
from robustgen.certify.record import Certification, load_certification, summarise
from robustgen.certify.smoothed import base_sha256, smoothing_base
from robustgen.certify.votes import Voter, Wanted
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.errors import ArtifactError
from robustgen.fields import SEED, WHOLE, check_value
from robustgen.generator.load import load_generator
from robustgen.precision import parse_form
from robustgen.progress import Progress
from robustgen.runs import check_weights, load_named_classifier, load_run_data
from robustgen.spec import expand_ids
from robustgen.verification import Findings, Verification

__all__ = ["LEVEL", "Redraw", "contradiction", "count_classes", "load_base", "verify_certification"]

LEVEL = 0.001  # of all tests by fresh noise together
_CLOSE = 1e-9  # relative; what the rounding of another machine may do to a radius or to the price of going on
_BATCH = 1000  # noised images sent at once
_LABELS = 250  # images read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Redraw:
    """Votes that a check draws again.

    Attributes:
        fresh: certificates that are tested by other noise.
        draws: of that noise, for each.
        replay: examples whose draws are repeated as they were.
        seed: of the noise, and of which examples are taken.

    Raises:
        SpecError: a number that cannot be.
    """

    fresh: int = 0
    draws: int = 1000
    replay: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        for name, rule in (("fresh", SEED), ("replay", SEED), ("draws", WHOLE), ("seed", SEED)):
            check_value(f"--{name}", getattr(self, name), rule)

    @property
    def asked(self) -> bool:
        """Whether anything is to be drawn."""
        return bool(self.fresh or self.replay)


def verify_certification(
    run: Path, *, classifier: str | None, weights: Path | None, data_dir: Path | None, device: str, redraw: Redraw,
    progress: Progress,
) -> Verification:  # fmt: skip
    """Recompute all that can be recomputed of a finished certification; see `robustgen.verify.verify_run`.

    Raises:
        SpecError, RecordError: no finished certification, a file in it that cannot be read, or nothing to load by the
            name of its classifier.
    """
    where = pick_device(device)
    check = _Check(load_certification(run))
    if check.paperwork():
        spec = check.held.spec
        try:
            dataset, _ = load_run_data(run, spec.to_json(), data_dir)
            base = load_base(
                run, check.held, dataset, given=classifier, weights=weights, device=where,
                command=f"robustgen verify {run}",
            )  # fmt: skip
        except ArtifactError as error:
            check.wrong.append(str(error))
        else:
            check.checked.append(f"data and weights: hashes of {len(check.held.certificates)} examples and the network")
            classes = count_classes(base, dataset, where)
            if check.labels(dataset, classes):
                voting: dict[str, Any] = {"classes": classes, "batch_size": _BATCH, "device": where}
                check.fresh(Voter(base, spec.grid_noise(), seed=redraw.seed, **voting), dataset, redraw, progress)
                check.replay(Voter(base, spec.grid_noise(), seed=spec.seed, **voting), dataset, redraw, progress)
    return Verification(
        run=run, checked=tuple(check.checked), wrong=tuple(check.wrong), doubtful=tuple(sorted(check.doubtful)),
        evidence="counts", doubt="votes that rounding may have turned",
    )  # fmt: skip


def load_base(
    run: Path, held: Certification, dataset: Dataset, *, given: str | None, weights: Path | None, device: torch.device,
    command: str,
) -> nn.Module:  # fmt: skip
    """The function that was certified, in the form in which it was, and no other.

    Args:
        run, held, dataset: the certification and its images.
        given: what to load instead of the name in the record.
        weights: file of weights.
        device: where it shall be.
        command: how the user would type it again, for messages.

    Raises:
        SpecError, ArtifactError: it cannot be had, or has other weights.
    """
    generator_name, _, name = held.spec.classifier.rpartition("|")
    classifier = load_named_classifier(name, dataset.shape, given=given, weights=weights, command=command).to(device)
    generator = load_generator(generator_name, device=device, precision="float32") if generator_name else None
    check_weights(run, given or held.spec.classifier, base_sha256(classifier, generator), held.spec.weights_sha256)
    return smoothing_base(classifier, generator, held.spec.sigma, parse_form(held.spec.precision))


def count_classes(base: nn.Module, dataset: Dataset, device: torch.device) -> int:
    """K of logits (B, K)."""
    with torch.no_grad():
        return int(base(torch.zeros(1, *dataset.shape, device=device)).shape[1])


def contradiction(one: Certificate, design: Design, held: Certification) -> str | None:
    """What a line of the journal has that the design cannot have given, in words; None where all of it follows.

    Args:
        one: the line.
        design: looks and boundaries.
        held: whose line it is.
    """
    looks = len(one.counts)
    if looks > len(design.looks):
        return f"it was looked at {looks} times, the design has {len(design.looks)} looks."
    samples = held.spec.selection + design.looks[looks - 1]
    if one.samples != samples:
        return f"its draws were edited: {one.samples}, selection and {looks} looks make {samples}."
    gains, draws = np.diff([0, *one.counts]), np.diff([0, *design.looks[:looks]])
    if bool(((gains < 0) | (gains > draws)).any()):
        look = int(((gains < 0) | (gains > draws)).argmax())
        return f"its counts were edited: look {look + 1} adds {gains[look]} votes in {draws[look]} draws."
    reached = np.maximum.accumulate([design.reached(k, look) for look, k in enumerate(one.counts)]).tolist()
    for look, (k, so_far) in enumerate(zip(one.counts, reached, strict=True)):
        if design.decided(k, look, so_far) != (look == looks - 1) and not _near_the_price(design, k, look, so_far):
            did, does = ("stopped", "goes on") if look == looks - 1 else ("went on", "stops")
            return f"its counts were edited: it {did} at look {look + 1}, where with {k} votes the design {does}."
    radius = design.radius(one.counts[-1], reached[-1], held.spec.grid_noise(), held.pixels)
    if one.predict != (ABSTAIN if radius is None else one.selected):
        follows = "that it abstains" if radius is None else f"class {one.selected}"
        return f"its class was edited: {one.predict}, from its counts follows {follows}."
    if abs(one.radius - (radius or 0.0)) > _CLOSE * (1 + one.radius):
        return f"its radius was edited: {one.radius:g}, from its counts follows {radius or 0.0:g}."
    return None


def _near_the_price(design: Design, k: int, look: int, reached: int) -> bool:
    """Whether rounding may decide here if going on is worth its price."""
    if look == len(design.looks) - 1 or not design.valued[reached:].any():
        return False
    return abs(design.promise(k, look, reached) - design.price) <= _CLOSE * design.price


class _Check(Findings):
    """Of a certification."""

    def __init__(self, held: Certification) -> None:
        super().__init__(held.folder)
        self.held = held

    @cached_property
    def design(self) -> Design:
        """Looks and boundaries."""
        return self.held.spec.design(self.held.pixels)

    def paperwork(self) -> bool:
        """Identity, ids, certificates and totals: what the journal alone tells. False: nothing more to check."""
        spec, record = self.held.spec, self.held.record
        said = record.get("spec")
        ids = [one.id for one in self.held.certificates]
        if not self.identity(spec, str(record.get("identity")), said if isinstance(said, dict) else {}):
            return False
        if self.rows(ids, expand_ids(spec.ids), "certificates.jsonl"):
            self._certificates()
            self._totals()
        return not self.wrong

    def _certificates(self) -> None:
        """Each follows from its counts: votes at each look, the look at which it stopped, class, radius."""
        for one in self.held.certificates:
            said = contradiction(one, self.design, self.held)
            if said is not None:
                self.wrong.append(f"example {one.id}: {said}")
        self.checked.append(f"certificates: counts, stop, class and radius of {len(self.held.certificates)}")

    def _totals(self) -> None:
        """Certified accuracies, their intervals, ACR, abstentions and draws follow from the lines."""
        found = sorted(self.held.certificates, key=lambda one: one.id)
        for field, value in summarise(self.held.spec, found, self.held.shape).items():
            said = self.held.record.get(field)
            if said != value and field == "journal_sha256":
                self.wrong.append("certificates.jsonl was edited: its hash is not that of the record.")
            elif said != value:
                self.wrong.append(f"record.json: {field} was edited: {said}, the lines say {value}.")
        self.checked.append("totals: certified accuracies, intervals, ACR, abstentions and draws")

    def labels(self, dataset: Dataset, classes: int) -> bool:
        """Shape and labels as in the data; classes that the network has. False: votes would make no sense."""
        if self.held.shape != dataset.shape:
            self.wrong.append(f"record.json: shape was edited: {self.held.shape}, the data has {dataset.shape}.")
        for at in range(0, len(self.held.certificates), _LABELS):
            part = self.held.certificates[at : at + _LABELS]
            _, y = dataset.batch([one.id for one in part])
            for one, label in zip(part, y.tolist(), strict=True):
                if one.label != label:
                    self.wrong.append(f"example {one.id}: its label was edited: {one.label}, the data says {label}.")
                if one.selected >= classes:
                    self.wrong.append(f"example {one.id}: class {one.selected} of a network with {classes} classes.")
        self.checked.append(f"labels of {len(self.held.certificates)}")
        return not self.wrong

    def fresh(self, voter: Voter, dataset: Dataset, redraw: Redraw, progress: Progress) -> None:
        """Test certificates by noise that the run never saw.

        A certificate claims that a class has more than a share p of the votes. So few votes of `draws` that this has a
        probability below LEVEL / certificates at p (binomial, Bonferroni) contradict it.
        """
        from scipy.stats import binom

        able = [one for one in self.held.certificates if one.predict != ABSTAIN]
        chosen = _take(able, redraw.fresh, redraw.seed)
        if not chosen:
            return
        progress.start("fresh noise", len(chosen))
        level, least = LEVEL / len(chosen), 1.0
        for done, one in enumerate(chosen, 1):
            ((id_, _, image),) = _examples(dataset, [one])
            (votes,) = voter.count([Wanted(id_, voter.noise.on_grid(image), "verify", 0, redraw.draws)])
            claimed = threshold_for(one.radius, voter.noise, image.size)
            chance = float(binom.cdf(int(votes[one.predict]), redraw.draws, claimed))
            least = min(least, chance)
            if chance < level:
                self.wrong.append(
                    f"example {one.id}: fresh noise contradicts its radius {one.radius:g}, which needs more than "
                    f"{100 * claimed:.2f} % of the votes: class {one.predict} got {votes[one.predict]} of "
                    f"{redraw.draws} (p = {chance:.1e}, level {level:.1e})."
                )
            progress.advance(done, f"smallest p {least:.1e}")
        self.checked.append(
            f"fresh noise: {redraw.draws} draws for {len(chosen)} of {len(able)} certificates (seed {redraw.seed}): "
            f"smallest p {least:.1e}, level {LEVEL:g} / {len(chosen)}"
        )

    def replay(self, voter: Voter, dataset: Dataset, redraw: Redraw, progress: Progress) -> None:
        """Repeat the draws of some examples: the same noise gives the same counts, but for votes turned by rounding."""
        chosen = _take(self.held.certificates, redraw.replay, redraw.seed)
        if not chosen:
            return
        progress.start("replay", len(chosen))
        written, found = {one.id: one for one in chosen}, list[Certificate]()

        def finish(again: Certificate) -> None:
            found.append(again)
            self._compare(written[again.id], again)
            progress.advance(len(found), f"{len(self.wrong)} contradictions")

        certify(voter, _examples(dataset, chosen), self.design, selection=self.held.spec.selection, finish=finish)
        self.checked.append(f"replay: the draws of {len(chosen)} examples, {sum(one.samples for one in found)} in all")

    def _compare(self, one: Certificate, again: Certificate) -> None:
        """The same draws, counted once more."""
        if one == again:
            return
        shared = min(len(one.counts), len(again.counts))
        apart = np.abs(np.subtract(one.counts[:shared], again.counts[:shared]))
        if one.selected != again.selected and one.predict != ABSTAIN:
            self.wrong.append(f"example {one.id}: its class was edited: {one.selected}, the same draws choose "
                              f"{again.selected}.")  # fmt: skip
        elif one.selected == again.selected and bool((apart > 2 + np.array(self.design.looks[:shared]) / 500).any()):
            self.wrong.append(
                f"example {one.id}: its counts were edited: {one.counts[:shared]}, the same draws give "
                f"{again.counts[:shared]}."
            )
        else:
            self.doubtful.add(one.id)


def _take(found: Sequence[Certificate], number: int, seed: int) -> list[Certificate]:
    """So many of them, as a hash of seed and id has it; in the order of their ids."""

    def place(one: Certificate) -> bytes:
        return hashlib.sha256(f"{seed}/verify/{one.id}".encode()).digest()

    return sorted(sorted(found, key=place)[:number], key=lambda one: one.id)


def _examples(
    dataset: Dataset, chosen: Sequence[Certificate]
) -> list[tuple[int, int, np.ndarray[Any, Any]]]:  # fmt: skip
    """Id, label and image of each."""
    x, y = dataset.batch([one.id for one in chosen])
    return [(one.id, int(y[k]), x[k].double().numpy()) for k, one in enumerate(chosen)]
