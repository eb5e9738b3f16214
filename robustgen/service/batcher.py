"""Micro-batches: requests that come at about the same time go through the classifier together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from robustgen.service.images import Refused

__all__ = ["Batcher"]

_Entry = tuple[Tensor, "asyncio.Future[Tensor]"]


class Batcher:
    """A bounded queue in front of one thread that runs the classifier.

    Args:
        model: images (B, C, H, W) to (B, K).
        batch: images that go through at once, unless a single request holds more.
        room: images that may wait; what comes on top is refused.
        linger: seconds to wait for company.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], *, batch: int, room: int, linger: float) -> None:
        self.model, self.batch, self.room, self.linger = model, batch, room, linger
        self.waiting = 0
        self.pool = ThreadPoolExecutor(1, "robustgen-serve")
        self._queue: asyncio.Queue[_Entry] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, x: Tensor) -> Tensor:
        """Answers (B, K) for images (B, C, H, W).

        Raises:
            Refused: the queue is full.
        """
        if self.waiting + len(x) > self.room:
            raise Refused(503, "too many images are waiting; come again in a second.", wait=1.0)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        self.waiting += len(x)
        answer: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        try:
            await self._queue.put((x, answer))
            return await answer
        finally:
            self.waiting -= len(x)

    async def stop(self) -> None:
        """End the worker; what waits is given up."""
        if self._worker is not None:
            self._worker.cancel()
        self.pool.shutdown(wait=False)

    async def _work(self) -> None:
        loop, left = asyncio.get_running_loop(), None
        while True:
            first = left or await self._queue.get()
            group, left = await self._gather(first)
            try:
                answers = await loop.run_in_executor(self.pool, self._run, torch.cat([x for x, _ in group]))
            except Exception as error:  # noqa: BLE001 -- a user's network may raise anything; each request hears of it
                for _, answer in group:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), part in zip(group, answers.split([len(x) for x, _ in group]), strict=True):
                if not answer.done():  # whoever asked may have gone
                    answer.set_result(part)

    async def _gather(self, first: _Entry) -> tuple[list[_Entry], _Entry | None]:
        """The first request and those that come within the time, and one that no longer fits."""
        group, size, loop = [first], len(first[0]), asyncio.get_running_loop()
        until = loop.time() + self.linger
        while size < self.batch:
            try:
                entry = await asyncio.wait_for(self._queue.get(), max(0.0, until - loop.time()))
            except TimeoutError:
                break
            if size + len(entry[0]) > self.batch:
                return group, entry
            group.append(entry)
            size += len(entry[0])
        return group, None

    def _run(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x)
