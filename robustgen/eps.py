"""An eps as it is written, "8/255" or "0.5"; torch is not needed to read one."""

from __future__ import annotations

import math
import re

from robustgen.errors import SpecError

__all__ = ["parse_eps", "same_threat"]


def parse_eps(text: str) -> float:
    """A decimal or a fraction of integers or decimals: "8/255", "0.5", "1e-2".

    Raises:
        SpecError: it is none.
    """
    number = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    if not re.fullmatch(rf"{number}(\s*/\s*{number})?", text):
        raise SpecError(f"threat: eps must be a number such as 8/255 or 0.1, got '{text}'.")
    above, _, below = text.partition("/")
    if below and float(below) == 0:
        raise SpecError(f"threat: eps divides by zero, got '{text}'.")
    return float(above) / float(below or "1")


def same_threat(mine: str, theirs: str) -> bool:
    """Whether two threats are one, however they are written: linf:8/255 and Linf:0.03137254902; unions part by part."""
    parts, their_parts = _parts(mine), _parts(theirs)
    return len(parts) == len(their_parts) and all(map(_same, parts, their_parts))


def _parts(text: str) -> list[str]:
    """The threats of a union; a comma before a digit belongs to the place of a window, as in patch:6x6@2,3."""
    return re.split(r",(?=\s*[A-Za-z])", text)


def _same(mine: str, theirs: str) -> bool:
    (norm, _, eps), (their_norm, _, their_eps) = (text.strip().lower().partition(":") for text in (mine, theirs))
    if norm.strip() != their_norm.strip() or bool(eps) != bool(their_eps):
        return False
    if norm.strip() == "patch":  # a window in pixels: 6x6 or 6x6@2,3
        return "".join(eps.split()) == "".join(their_eps.split())
    return not eps or math.isclose(parse_eps(eps.strip()), parse_eps(their_eps.strip()), rel_tol=1e-9)
