"""What a table claims and what it takes to check it: arms, claims and scales, read from TOML files.

An arm is one row: how many generated images, drawn how, trained on how long. A scale says with which data, networks and
seeds. A claim is a linear combination of robust accuracies that should lie above a margin, or not above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robustgen.errors import SpecError, unknown_name
from robustgen.fields import (
    NOT_NEGATIVE,
    POSITIVE,
    TEXT,
    WHOLE,
    Rule,
    check_fields,
    each,
    number,
    one_of,
    or_none,
    read_section,
    text,
)
from robustgen.reproduce.scales import in_folder, read_toml

__all__ = ["Arm", "Claim", "Scale", "Table", "Term", "list_tables", "load_scale", "load_table"]

WHICH = ("best", "last")  # the epoch with the highest accuracy on held-out images, and the final one


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a table.

    Args:
        name: as shown.
        ratio: generated images for each real one; 0 for none.
        generator: which of the scale's generators draws them.
        sampler: of the generated images; None for the scale's.
        conditional: whether the generator knows classes; if not, a classifier trained on the real images labels them.
        epochs: as a multiple of the scale's.
        augment: names in `AUGMENTATIONS` and `MIXES`, applied after those of the scale's recipe.
        paper: what the paper reports, in percent: `clean_best`, `clean_last`, `aa_best`, `aa_last`, `pgd_best`,
            `pgd_last`, `best_epoch`, `fid`, each where it does.
    """

    name: str
    ratio: float = 0.0
    generator: str = "edm"
    sampler: str | None = None
    conditional: bool = True
    epochs: float = 1.0
    augment: tuple[str, ...] = ()
    paper: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "arms", _RULES)


@dataclass(frozen=True)
class Term:
    """`factor` times the robust accuracy of an arm's best or last epoch."""

    factor: float
    arm: str
    which: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is said of the arms.

    Args:
        text: the claim, in words.
        terms: [factor, arm, "best" or "last"] each; their sum is what is tested.
        kind: "above": the sum lies above `margin`; "not-above": it does not.
        margin: in points of accuracy, a fraction of 1.
        paper: the sum in the paper's own figures, in points of percent; None where it has them not.
    """

    text: str
    terms: tuple[Term, ...]
    kind: str = "above"
    margin: float = 0.0
    paper: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "claims", _RULES)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a paper."""

    name: str
    title: str
    source: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]

    def arm(self, name: str) -> Arm:
        """An arm by name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def attacked(self) -> tuple[str, ...]:
        """Which weights of a training: the best, and the last where a claim or a figure of the paper is about them."""
        told = {term.which for claim in self.claims for term in claim.terms}
        told |= {name.removeprefix("aa_") for arm in self.arms for name in arm.paper}
        return tuple(which for which in WHICH if which == "best" or which in told)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """With what an experiment is run.

    Args:
        name: such as "laptop".
        description: in words.
        recipe: of the classifiers, by name or file; arms change what they name.
        labeller: recipe of the classifier that labels images of a generator without classes.
        generators: recipe of each generator, by name or file; they see the same real images as the classifiers.
        sampler: of generated images where an arm names none.
        share: of generated images in every batch, where there are any.
        ratios: by table, generated images for each real one where those of its arms would take too long here.
        images: real training images, where the recipe uses all of them.
        gpu: whether it is refused without one.
        seeds: one training each.
        n: test images, the first ones.
        plan: what they are attacked with.
        resources: what it takes, in words.
    """

    name: str
    description: str
    recipe: str
    labeller: str
    generators: dict[str, str]
    sampler: str = "heun:steps=20"
    share: float = 0.7
    ratios: dict[str, float] = field(default_factory=dict)
    images: int = 50_000
    gpu: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    n: int = 1000
    plan: str = "rapid"
    resources: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "scale", _RULES)

    def fit(self, table: Table) -> Table:
        """A table with as many generated images as this scale takes for it."""
        if table.name not in self.ratios:
            return table
        ratio = self.ratios[table.name]
        return replace(table, arms=tuple(replace(arm, ratio=ratio) if arm.ratio else arm for arm in table.arms))


def list_tables() -> dict[str, Path]:
    """Names and files of the tables that come with robustgen."""
    return {name: path for name, path in in_folder("reproduce").items() if not name.startswith("scale-")}


def load_table(name: str) -> Table:
    """A table by name, or a file ending in .toml.

    Raises:
        SpecError: no such table, or a file that is none; the field is named.
    """
    content = read_toml(name, list_tables(), "table")
    arms = tuple(read_section(Arm, "arms", arm) for arm in content.pop("arms", ()))
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise SpecError(f"table {name}: needs [[arms]] with names that differ.")
    claims = tuple(_claim(claim, [arm.name for arm in arms]) for claim in content.pop("claims", ()))
    return read_section(Table, "table", {"name": Path(name).stem, **content, "arms": arms, "claims": claims})


def load_scale(name: str) -> Scale:
    """A scale by name, "laptop" or "paper", or a file ending in .toml.

    Raises:
        SpecError: no such scale, or a file that is none; the field is named.
    """
    content = read_toml(name, in_folder("reproduce", "scale-"), "scale")
    return read_section(Scale, "scale", {"name": Path(name).stem, **content})


def _claim(content: Mapping[str, Any], arms: list[str]) -> Claim:
    terms = []
    for part in content.get("terms", ()):
        if not isinstance(part, list) or len(part) != 3:
            raise SpecError(f'claims.terms: each is [factor, "arm", "best" or "last"], got {part!r}.')
        factor, arm, which = part
        if arm not in arms:
            raise unknown_name("arm", arm, arms)
        if which not in WHICH:
            raise unknown_name("epoch", which, WHICH)
        terms.append(Term(float(factor), arm, which))
    if not terms:
        raise SpecError("claims.terms: a claim needs one or more.")
    return read_section(Claim, "claims", {**content, "terms": tuple(terms)})


_RULES: dict[str, Rule] = {
    "arms.name": TEXT,
    "arms.ratio": NOT_NEGATIVE,
    "arms.generator": TEXT,
    "arms.sampler": (or_none(text), "a text"),
    "arms.epochs": POSITIVE,
    "arms.augment": (each(text), "a list of texts"),
    "claims.text": TEXT,
    "claims.kind": one_of("above", "not-above"),
    "claims.margin": NOT_NEGATIVE,
    "scale.recipe": TEXT,
    "scale.labeller": TEXT,
    "scale.sampler": TEXT,
    "scale.generators": (
        lambda value: isinstance(value, dict) and bool(value) and all(map(text, value.values())),
        'recipes by name, such as { edm = "fmnist-edm" }',
    ),
    "scale.ratios": (
        lambda value: isinstance(value, dict) and all(map(number(0, math.inf, open_low=True), value.values())),
        "positive numbers by table, such as { wang2023-sampling-steps = 4 }",
    ),
    "scale.share": (number(0, 1.0000001, open_low=True), "a number in (0, 1]"),
    "scale.seeds": (lambda value: bool(value) and len(set(value)) == len(value), "a list of different seeds"),
    "scale.images": WHOLE,
    "scale.n": WHOLE,
    "scale.plan": TEXT,
}
