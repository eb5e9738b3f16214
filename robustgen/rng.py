"""Random streams that belong to examples, not to batches.

Every number is a pure function of (seed, purpose, example id, restart, step, position): Philox4x32-10, the
counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3", SC'11). So batch size,
order, sharding and resume change nothing, there is no state to save, and torch's global generator stays untouched.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.errors import SpecError

__all__ = ["ExampleRng", "child_stream", "generator_for", "philox4x32", "stage_seed", "streams_at", "streams_of_draws"]

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments (golden ratio, sqrt(3) - 1)


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int], rounds: int = 10) -> list[Tensor]:
    """Philox4x32: four 32-bit words of counter to four of output, on int64 tensors that broadcast together.

    int64 products wrap modulo 2^64, which is all the algorithm needs: low and high 32 bits are masked out.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK)
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return [c0, c1, c2, c3]


def stage_seed(seed: int, label: str) -> int:
    """The seed of one stage of a plan, so that no two stages draw the same numbers: two start apart, as they should."""
    return (seed + zlib.crc32(label.encode()) * 0x9E3779B97F4A7C15) % 2**64


def generator_for(seed: int, purpose: str, *place: int) -> torch.Generator:
    """A CPU generator for one use at one place, such as (epoch, step): resuming there needs no saved state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{'/'.join(map(str, place))}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True, slots=True)
class ExampleRng:
    """One stream for each row of a batch.

    Args:
        seed: 0 <= seed < 2^64.
        ids: (B,) int64, the example id of each row, 0 <= id < 2^32.
        restart: (B,) int64, which restart each row is in; None means the first (0).
    """

    seed: int
    ids: Tensor
    restart: Tensor

    @classmethod
    def of(cls, seed: int, ids: Sequence[int] | Tensor, restart: Sequence[int] | Tensor | None = None) -> ExampleRng:
        """Streams for these example ids.

        Raises:
            SpecError: the seed is not an integer in [0, 2^64).
        """
        if type(seed) is not int or not 0 <= seed < 2**64:
            raise SpecError(f"seed must be an integer from 0 to 2^64 - 1, got {seed!r}.")
        rows = torch.as_tensor(ids, dtype=torch.int64)
        return cls(
            seed, rows, torch.zeros_like(rows) if restart is None else torch.as_tensor(restart, dtype=torch.int64)
        )

    def words(self, count: int, purpose: str, step: Tensor | int = 0, device: torch.device | None = None) -> Tensor:
        """(B, count) int64 holding uniform 32-bit integers.

        Args:
            count: how many a row.
            purpose: names the use, so that two uses never share numbers.
            step: (B,) int64 or an int: the round of the attack each row is in.
        """
        device = device or self.ids.device
        blocks = torch.arange(math.ceil(count / 4), dtype=torch.int64, device=device)[None, :]
        steps = torch.as_tensor(step, dtype=torch.int64, device=device).expand(len(self.ids))[:, None]
        ids, restart = self.ids.to(device)[:, None], self.restart.to(device)[:, None]
        key = (self.seed & _MASK, (self.seed >> 32) ^ zlib.crc32(purpose.encode()))
        words = philox4x32(torch.broadcast_tensors(blocks, steps, ids, restart), key)
        return torch.stack(words, -1).reshape(len(self.ids), -1)[:, :count]

    def uniform(
        self, shape: Sequence[int], purpose: str, step: Tensor | int = 0, device: torch.device | None = None
    ) -> Tensor:
        """(B, *shape) float32, uniform in [0, 1), on a grid of 2^-24."""
        words = self.words(math.prod(shape), purpose, step, device)
        return ((words >> 8).float() * 2.0**-24).reshape(len(self.ids), *shape)

    def normal(
        self, shape: Sequence[int], purpose: str, step: Tensor | int = 0, device: torch.device | None = None
    ) -> Tensor:
        """(B, *shape) float32, standard normal, by Box and Muller."""
        half = math.ceil(math.prod(shape) / 2)
        words = self.words(2 * half, purpose, step, device)
        radius = torch.sqrt(-2 * torch.log((words[:, :half].float() + 0.5) * 2.0**-32))
        angle = (2 * math.pi * 2.0**-32) * words[:, half:].float()
        pair = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
        return pair[:, : math.prod(shape)].reshape(len(self.ids), *shape)

    def signs(
        self, shape: Sequence[int], purpose: str, step: Tensor | int = 0, device: torch.device | None = None
    ) -> Tensor:
        """(B, *shape) float32, -1 or +1 with equal probability."""
        words = self.words(math.prod(shape), purpose, step, device)
        return ((words & 1) * 2 - 1).float().reshape(len(self.ids), *shape)

    def below(self, high: Tensor, purpose: str, step: Tensor | int = 0) -> Tensor:
        """(B,) int64, uniform in 0 .. high - 1 for high (B,) int64; 0 where high < 1.

        By multiplication with a 32-bit fraction: the bias is below high / 2^32.
        """
        word = self.words(1, purpose, step, high.device)[:, 0]
        return (word * high.clamp(min=1)) >> 32

    def take(self, rows: Tensor) -> ExampleRng:
        """The streams of some rows."""
        return ExampleRng(self.seed, self.ids[rows.to(self.ids.device)], self.restart[rows.to(self.restart.device)])

    def join(self, other: ExampleRng) -> ExampleRng:
        """These streams, then those of `other`, which has the same seed."""
        return ExampleRng(self.seed, torch.cat([self.ids, other.ids]), torch.cat([self.restart, other.restart]))


def child_stream(rng: ExampleRng, label: str) -> ExampleRng:
    """Streams of the same rows for a use of its own, such as one round of a purifier."""
    return ExampleRng(stage_seed(rng.seed, label), rng.ids, rng.restart)


def streams_at(rng: ExampleRng, label: str, place: Tensor) -> ExampleRng:
    """Streams of the same rows for a use at their place (B,) int64 in an attack, such as its round, below 2^14."""
    return ExampleRng(stage_seed(rng.seed, label), rng.ids, (rng.restart << 14) + place.to(rng.restart.device))


def streams_of_draws(rng: ExampleRng, draws: range) -> ExampleRng:
    """(D * B) rows, draw after draw, each with streams of its own; draws below 2^10."""
    copies = [(rng.restart << 10) + draw for draw in draws]
    return ExampleRng(rng.seed, rng.ids.repeat(len(draws)), torch.cat(copies))
