"""Votes of a classifier on noised images: the only thing that a certificate rests on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustgen.certify.noise import BLOCK, GridNoise
from robustgen.errors import SpecError

__all__ = ["Voter", "Wanted"]

_KEPT_BYTES = 256 * 2**20  # of blocks of noise that are still in use


@dataclass(frozen=True, slots=True)
class Wanted:
    """Draws first .. last - 1 for one image.

    Attributes:
        example: its id.
        image: (C, H, W) int32, whole parts, see `GridNoise.on_grid`.
        purpose: "select" or "estimate": draws of one are never those of the other.
        first, last: which draws.
    """

    example: int
    image: npt.NDArray[np.int32]
    purpose: str
    first: int
    last: int


class Voter:
    """Sends noised images through a classifier, many examples in a batch, and counts the classes.

    Noise belongs to (seed, purpose, example, draw), whatever the batch, the order or the shard.

    Args:
        classifier: (B, C, H, W) float32 -> logits (B, K); the function that is certified, in the precision in which it
            is asked. It is asked outside [0, 1] as well; it must not draw anything at random.
        noise: what is added.
        seed: of all noise.
        classes: K.
        batch_size: images sent at once.
        device: where the classifier is.
    """

    def __init__(
        self, classifier: nn.Module, noise: GridNoise, *, seed: int, classes: int, batch_size: int, device: torch.device
    ) -> None:
        self.classifier, self.noise, self.seed, self.classes = classifier, noise, seed, classes
        self.batch_size, self.device = batch_size, device
        self._blocks: OrderedDict[tuple[str, int, int], npt.NDArray[np.int32]] = OrderedDict()

    def count(self, wanted: Sequence[Wanted]) -> npt.NDArray[np.int64]:
        """(len(wanted), K) votes; every draw votes for exactly one class.

        Raises:
            SpecError: the classifier's output is not finite.
        """
        counts = np.zeros((len(wanted), self.classes), dtype=np.int64)
        held: list[npt.NDArray[np.int32]] = []
        owners: list[tuple[int, int]] = []  # row of counts, how many images
        size = 0
        for row, one in enumerate(wanted):
            for block in range(one.first // BLOCK, (one.last - 1) // BLOCK + 1):
                low, high = max(one.first - block * BLOCK, 0), min(one.last - block * BLOCK, BLOCK)
                noised = one.image + self._block(one, block)[low:high]
                while len(noised):
                    part = noised[: self.batch_size - size]
                    held.append(part)
                    owners.append((row, len(part)))
                    size, noised = size + len(part), noised[len(part) :]
                    if size == self.batch_size:
                        self._vote(held, owners, counts)
                        held, owners, size = [], [], 0
        if size:
            self._vote(held, owners, counts)
        return counts

    @torch.no_grad()
    def _vote(
        self, held: list[npt.NDArray[np.int32]], owners: list[tuple[int, int]], counts: npt.NDArray[np.int64]
    ) -> None:
        x = torch.from_numpy(np.concatenate(held)).to(self.device).float() * self.noise.unit
        logits: Tensor = self.classifier(x)
        if not bool(logits.isfinite().all()):
            raise SpecError("the classifier returned NaN or infinity on a noised image; nothing can be certified.")
        at, chosen = 0, logits.argmax(1).cpu().numpy()
        for row, size in owners:
            counts[row] += np.bincount(chosen[at : at + size], minlength=self.classes)
            at += size

    def _block(self, one: Wanted, block: int) -> npt.NDArray[np.int32]:
        key = (one.purpose, one.example, block)
        if key not in self._blocks:
            drawn = self.noise.draw(self.seed, one.example, block, one.image.shape, one.purpose)
            self._blocks[key] = drawn
            while len(self._blocks) > max(1, _KEPT_BYTES // drawn.nbytes):
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]
