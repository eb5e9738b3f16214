"""What `robustgen forge` shows: lines to read, and a picture of start, result and their difference."""

from __future__ import annotations

from pathlib import Path

import torch

from robustgen.errors import SpecError
from robustgen.forge import Forged, ForgeRequest
from robustgen.generator.denoiser import to_generator_range
from robustgen.generator.grid import save_grid
from robustgen.plot import amplification
from robustgen.tables import aligned

__all__ = ["check_picture", "forge_lines", "save_picture"]

_HIGH = 224  # pixels that the shorter edge of an image in the picture has at least
_SHOWN = 3  # classes named before and after, beside the target


def check_picture(path: Path) -> None:
    """Refuse a place for the picture where it cannot be, before any work.

    Raises:
        SpecError: no such folder, or a folder.
    """
    if path.is_dir():
        raise SpecError(f"--out: {path} is a folder; name a file, such as {path / 'forged.png'}.")
    if not path.absolute().parent.is_dir():
        raise SpecError(f"--out: there is no folder {path.parent}; make it, or name another file.")


def save_picture(found: Forged, path: Path) -> float:
    """Start, result and difference side by side, in whole multiples of their pixels; returns what multiplies it.

    Raises:
        SpecError: the file cannot be written.
    """
    change = found.result - found.start
    factor = amplification(float(change.abs().max()))
    shown = torch.stack([found.start, found.result, (0.5 + factor * change).clamp(0, 1)])
    scale = -(-_HIGH // min(shown.shape[2:]))
    shown = shown.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    try:
        save_grid(to_generator_range(shown), path, 3)
    except OSError as error:
        raise SpecError(f"--out: {path} cannot be written ({error.strerror}); name another file.") from None
    return factor


def forge_lines(request: ForgeRequest, found: Forged) -> list[str]:
    """Probabilities before and after, steps, distance, and what the defences say."""
    told, name = found.to_json(), found.names[found.target]
    leading = {int(k) for p in (found.before, found.after) for k in p.topk(min(_SHOWN, len(p))).indices}
    order = [found.target, *sorted(leading - {found.target}, key=lambda k: -float(found.after[k]))]
    rows = [(found.names[k], _percent(float(found.before[k])), _percent(float(found.after[k]))) for k in order]
    reached = f"sure after {found.steps} steps" if found.sure else f"not sure after {found.steps} steps"
    lines = [
        f"{request.classifier}, from {request.start} towards {name} ({found.target}): {reached}", "",
        *aligned([("class", "before", "after"), *rows]), "",
        f"distance from the start: {told['l2']:.3f} in L2, {told['linf']:.3f} in the pixel that moved most",
    ]  # fmt: skip
    if not found.sure:
        lines.append(f"probability {request.sure:g} was not reached: lower --closeness or --sure, or raise --steps")
    return [*lines, *_defences(found)]


def _defences(found: Forged) -> list[str]:
    lines = []
    if (said := found.purified) is not None:
        right = said["votes"][found.target]
        lines.append(
            f"behind {said['purifier']}: {found.names[found.target]} in {right} of {said['draws']} draws, most often "
            f"{found.names[said['prediction']]}: {_verdict(said['survives'])}"
        )
    if (said := found.smoothed) is not None:
        guess = "abstains" if said["prediction"] < 0 else f"says {found.names[said['prediction']]}"
        right = said["votes"][found.target]
        lines.append(
            f"smoothed with sigma {said['sigma']:g}: PREDICT {guess}, {right} of {said['samples']} votes for "
            f"{found.names[found.target]}: {_verdict(said['survives'])}"
        )
    return lines


def _verdict(survives: bool) -> str:
    return "it survives" if survives else "it does not survive"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
