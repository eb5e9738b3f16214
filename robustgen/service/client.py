"""Asking a classifier over HTTP: patience, retries, a budget, and answers that are never paid for twice.

A failure is one sentence; what was finished before it stays in the run folder, and the same command goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustgen.errors import RemoteError, SpecError
from robustgen.fields import POSITIVE, WHOLE, check_value, or_none
from robustgen.service.images import encode

__all__ = ["Client", "Served"]

log = logging.getLogger(__name__)

_KEPT = 100_000  # answers in the cache
_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between tries, doubled each time, with jitter
_PATIENCE = 600.0  # seconds that a server may ask for
_GO_ON = "what is finished is kept, and the same command goes on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a server says of itself: name and sha256 are its claim, the rest is what the client goes by."""

    name: str
    sha256: str
    classes: int
    shape: tuple[int, int, int]
    answers: str
    stochastic: bool
    most: int

    @property
    def digest(self) -> str:
        """sha256 of all that it says, which stands where a local classifier has the hash of its weights."""
        said = [self.name, self.sha256, self.classes, list(self.shape), self.answers, self.stochastic]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class Client:
    """One server, asked by one account after the other.

    Args:
        url: such as http://127.0.0.1:8000.
        accounts: how the client calls itself; the next one is used when one is closed. None: by its address.
        queries: images that may be sent in all, or None.
        seconds: after which nothing more is sent, or None.
        timeout: seconds for one request.
        transport: of the HTTP library, for tests.
        sleep, clock, chance: of time and jitter, for tests.

    Attributes:
        sent: images that were answered; a repeated try of the same request counts once.
        cached: images that were answered from the cache.
    """

    def __init__(
        self, url: str, *, accounts: Sequence[str] = (), queries: int | None = None, seconds: float | None = None,
        timeout: float = 30.0, transport: Any = None, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        try:
            import httpx2 as httpx
        except ImportError:
            raise SpecError(f"{url} needs httpx2; type: pip install 'robustgen[serve]'") from None
        check_value("--total-queries", queries, (or_none(WHOLE[0]), WHOLE[1]))
        check_value("--total-seconds", seconds, (or_none(POSITIVE[0]), POSITIVE[1]))
        self.url = url.rstrip("/")
        self.sent = self.cached = 0
        self._accounts = list(accounts)
        self._queries, self._until = queries, None if seconds is None else clock() + seconds
        self._sleep, self._clock, self._chance = sleep, clock, chance
        self._failures = (httpx.TransportError,)
        self._http = httpx.Client(timeout=timeout, transport=transport, trust_env=False)
        weakref.finalize(self, self._http.close)
        self._answers: OrderedDict[bytes, Tensor] = OrderedDict()
        self.served = self._describe()
        self.caches = not self.served.stochastic

    def ask(self, x: Tensor, *, again: bool = False) -> Tensor:
        """Images (B, C, H, W) float32 -> (B, K): log-probabilities, or 1 at the label and 0 elsewhere.

        An image that was answered before is not sent again, unless the target is stochastic or `again` asks for it.

        Raises:
            RemoteError: the budget is spent, the account is closed, or the server does not answer as agreed.
        """
        images = x.detach().to("cpu", torch.float32)
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images.contiguous()]
        if not self.caches or again:
            answers = [row for part in self._chunks(list(range(len(images)))) for row in self._send(images[part])]
            return torch.stack(answers).to(x.device)
        found = {key: self._answers[key] for key in keys if key in self._answers}
        new = {key: row for row, key in enumerate(keys) if key not in found}  # each image once
        self.cached += len(keys) - len(new)
        for part in self._chunks(list(new.values())):
            for row, answer in zip(part, self._send(images[part]), strict=True):
                found[keys[row]] = self._answers[keys[row]] = answer
        while len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        return torch.stack([found[key] for key in keys]).to(x.device)

    def _chunks(self, rows: list[int]) -> list[list[int]]:
        return [rows[at : at + self.served.most] for at in range(0, len(rows), self.served.most)]

    def _send(self, x: Tensor) -> Tensor:
        if self._queries is not None and self.sent + len(x) > self._queries:
            raise RemoteError(
                f"{self.url}: the budget of {self._queries} queries is spent ({self.sent} sent); {_GO_ON} with a new "
                "--total-queries."
            )
        answer = self._parse(self._request("POST", "/predict", encode(x)), len(x))
        self.sent += len(x)
        return answer

    def _request(self, method: str, path: str, content: bytes | None = None) -> Any:
        """The JSON of an answer, after as many tries as it takes, at most so many."""
        why = ""
        for trial in range(_TRIES):
            self._check_time(why)
            wait = None
            headers = {"x-account": self._accounts[0]} if self._accounts else {}
            headers |= {"content-type": "application/json"} if content is not None else {}
            try:
                answer = self._http.request(method, self.url + path, content=content, headers=headers)
            except self._failures as error:
                why = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
            else:
                if answer.status_code == 200:
                    return self._json(answer)
                why = f"status {answer.status_code}: {_told(answer)}"
                if answer.status_code == 403 and len(self._accounts) > 1:
                    log.warning("%s closed account %s; going on as %s", self.url, *self._accounts[:2])
                    self._accounts.pop(0)
                    continue
                if answer.status_code not in (408, 429) and answer.status_code < 500:
                    raise RemoteError(f"{self.url} refuses the request ({why}); {_GO_ON} once it does not.")
                wait = _retry_after(answer)
            if trial + 1 < _TRIES:
                self._pause(trial, wait)
        raise RemoteError(f"{self.url} gives no answer after {_TRIES} tries ({why}); {_GO_ON} when it is up.")

    def _pause(self, trial: int, wait: float | None) -> None:
        """As long as the server asks, else longer each time; with jitter, so that clients do not come back at once."""
        seconds = min(_LONGEST_WAIT, _FIRST_WAIT * 2**trial) * (0.5 + self._chance())
        if wait is not None:
            seconds = wait + 0.1 * self._chance()
        if seconds > _PATIENCE:
            raise RemoteError(f"{self.url} asks to wait {seconds:.0f} s; {_GO_ON} after that.")
        if self._until is not None and self._clock() + seconds > self._until:
            raise RemoteError(
                f"{self.url}: the next try is due after --total-seconds are over; {_GO_ON} with a new one."
            )
        self._sleep(seconds)

    def _check_time(self, why: str) -> None:
        if self._until is not None and self._clock() >= self._until:
            told = f" ({why})" if why else ""
            raise RemoteError(f"{self.url}: --total-seconds are over{told}; {_GO_ON} with a new one.")

    def _json(self, answer: Any) -> Any:
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise self._garbage(f"no JSON, {answer.content[:40]!r}") from None

    def _garbage(self, got: str) -> RemoteError:
        return RemoteError(
            f"{self.url} answers something else than a server of `robustgen serve` does ({got}); {_GO_ON} once it does."
        )

    def _describe(self) -> Served:
        said = self._request("GET", "/health")
        try:
            shape = tuple(said["shape"])
            served = Served(
                name=str(said["name"]), sha256=str(said["sha256"]), classes=said["classes"], shape=shape,
                answers=said["answers"], stochastic=said["stochastic"], most=said["most"],
            )  # fmt: skip
        except (KeyError, TypeError):
            raise self._garbage(f"health: {str(said)[:60]!r}") from None
        numbers = (served.classes, served.most, *served.shape)
        sound = len(shape) == 3 and all(type(v) is int and v > 0 for v in numbers) and type(served.stochastic) is bool
        if not sound or served.answers not in ("labels", "scores"):
            raise self._garbage(f"health: {str(said)[:60]!r}")
        return served

    def _parse(self, said: Any, rows: int) -> Tensor:
        """(rows, K) float32 of an answer."""
        classes, key = self.served.classes, self.served.answers
        values = said.get(key) if isinstance(said, dict) else None
        if not isinstance(values, list) or len(values) != rows:
            raise self._garbage(f"expected {rows} {key}, {str(said)[:60]!r}")
        if key == "labels":
            if not all(type(v) is int and 0 <= v < classes for v in values):
                raise self._garbage(f"labels outside 0 .. {classes - 1}, {str(values)[:60]}")
            return one_hot(torch.tensor(values), classes).float()
        try:
            scores = torch.tensor(values, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise self._garbage(f"scores that are no numbers, {str(values)[:60]}") from None
        sound = scores.shape == (rows, classes) and bool(scores.isfinite().all()) and float(scores.min()) >= 0
        if not sound or float((scores.sum(1) - 1).abs().max()) > 1e-3:
            raise self._garbage(f"scores that are no probabilities of {classes} classes, {str(values)[:60]}")
        return scores.clamp(min=1e-300).log().float()


def _told(answer: Any) -> str:
    """The server's own sentence, shortened."""
    try:
        return str(json.loads(answer.content)["error"])[:160]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no sentence with it"


def _retry_after(answer: Any) -> float | None:
    """Seconds, where the server names some; dates are not understood, and fall back to the client's own waiting."""
    try:
        seconds = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
