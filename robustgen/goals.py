"""What counts as a success: any wrong class, or one that was named beforehand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from robustgen.attacks.base import Attack

__all__ = ["UNTARGETED", "Goal", "check_goal_of", "check_labels", "find_class"]

_KINDS = ("untargeted", "targeted", "least-likely", "next", "all")


@dataclass(frozen=True, slots=True)
class Goal:
    """The class that each example's prediction must become.

    Attributes:
        kind: "untargeted", any class but the label; "targeted", one class for all; "least-likely", the class with the
            smallest logit on the clean image, the label left out (Kurakin et al. 2017, arXiv:1607.02533, section 2.3);
            "next", (label + 1) mod K; "all", every class in turn, each a run of its own.
        target: the class of "targeted".
    """

    kind: str = "untargeted"
    target: int | None = None

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read "targeted:3", "least-likely", "next", "all" or "untargeted"; `str()` gives the same back.

        Raises:
            SpecError: nothing of that name (the nearest is named), or no class after "targeted".
        """
        kind, colon, target = text.strip().partition(":")
        if kind not in _KINDS:
            raise unknown_name("goal", kind, _KINDS, hint="A goal reads like targeted:3, least-likely, next or all.")
        if kind == "targeted":
            if not re.fullmatch(r"\d+", target):
                raise SpecError(
                    f"goal: expected targeted:CLASS with a class from 0 on, such as targeted:3, got '{text}'."
                )
            return cls(kind, int(target))
        if colon:
            raise SpecError(f"goal: {kind} takes no class, got '{text}'; type {kind}, or targeted:CLASS.")
        return cls(kind)

    def __str__(self) -> str:
        return self.kind if self.target is None else f"{self.kind}:{self.target}"

    @property
    def targeted(self) -> bool:
        """Whether one class alone counts."""
        return self.kind != "untargeted"

    @property
    def protocol(self) -> str:
        """What a protocol string says of it; nothing without one."""
        return f"; goal={self}" if self.targeted else ""

    def check(self, classes: int) -> None:
        """Refuse a goal that a classifier with so many classes has not.

        Raises:
            SpecError: a class out of range, or a single class.
        """
        if self.target is not None and self.target >= classes:
            raise SpecError(
                f"--goal {self}: the classifier has {classes} classes, 0 to {classes - 1}; class {self.target} is none."
            )
        if self.targeted and classes < 2:
            raise SpecError(f"--goal {self} needs two classes or more, and this classifier has one; drop --goal.")

    def targets(self, y: Tensor, logits: Tensor) -> Tensor | None:
        """(B,) int64, the class aimed at for labels y (B,) and logits (B, K) of the clean images; None for none.

        It equals the label where the goal names it: such an example is skipped.
        """
        if self.kind == "targeted":
            return torch.full_like(y, self.target or 0)
        if self.kind == "next":
            return (y + 1) % logits.shape[1]
        if self.kind == "least-likely":
            return logits.scatter(1, y[:, None], torch.inf).argmin(1)
        return None


UNTARGETED = Goal()


def check_goal_of(attacks: Sequence[tuple[str, Attack]], goal: Goal) -> None:
    """Whether every attack (name, instance) can be told a class.

    Raises:
        SpecError: one cannot; the first is named.
    """
    if not goal.targeted:
        return
    for name, attack in attacks:
        if not getattr(attack, "takes_goal", False):
            raise SpecError(
                f"attack '{name}' cannot be told a class: it takes whichever it comes to, and got --goal {goal}; "
                "type --attacks pgd, apgd-t, fab-t, fmn-t or square, or drop --goal."
            )


def check_labels(goal: Goal, labels: Sequence[int]) -> list[str]:
    """Sentences about examples that a goal skips, before any work.

    Raises:
        SpecError: it skips all of them.
    """
    skipped = sum(label == goal.target for label in labels)
    if goal.target is None or not skipped:
        return []
    if skipped == len(labels):
        raise SpecError(f"--goal {goal}: all {skipped} examples have that label, so there is nothing to attack.")
    return [f"{skipped} of {len(labels)} examples have the label {goal.target}, which is the target: they are skipped."]


def find_class(text: str, names: Sequence[str]) -> int:
    """The class of that number or name.

    Raises:
        SpecError: no such class; the nearest name is suggested.
    """
    if text.isdecimal():
        if int(text) >= len(names):
            raise SpecError(f"class {text} is none of the {len(names)} classes, 0 to {len(names) - 1}.")
        return int(text)
    plain = [name.casefold() for name in names]
    if text.casefold() not in plain:
        raise unknown_name("class", text, names, hint=f"Or a number from 0 to {len(names) - 1}.")
    return plain.index(text.casefold())
