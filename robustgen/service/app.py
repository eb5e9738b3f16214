"""The server: POST /predict answers for images, GET /health says what is served.

A refusal is a status and {"error": "one sentence"}; whatever goes wrong inside, no traceback leaves the process.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustgen.classifier import Classifier
from robustgen.errors import SpecError
from robustgen.fields import POSITIVE, WHOLE, check_value, one_of, or_none
from robustgen.service.batcher import Batcher
from robustgen.service.images import Refused, decode
from robustgen.service.monitors import Monitor
from robustgen.service.throttle import Throttle

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from starlette.responses import Response

__all__ = ["ServeSettings", "create_app", "need_fastapi"]

log = logging.getLogger(__name__)

_CLOSED = 10_000  # accounts that stay closed


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How a classifier is served.

    Attributes:
        answers: "labels", the predicted class alone, or "scores", probabilities too.
        rate: images a second that an account may send; None for no limit.
        burst: images that it may send at once.
        room: images that may wait.
        batch: images that go through the classifier at once, and in one request.
        linger: seconds that a request waits for company.
        body: bytes of a request.
        patience: seconds in which a request must have come in.
        alarm: what an alarm of the monitor does: "close" the account, or "count" it.
    """

    answers: str = "labels"
    rate: float | None = None
    burst: int = 256
    room: int = 1024
    batch: int = 64
    linger: float = 0.002
    body: int = 8 * 2**20
    patience: float = 10.0
    alarm: str = "close"

    def __post_init__(self) -> None:
        check_value("--answers", self.answers, one_of("labels", "scores"))
        check_value("--alarm", self.alarm, one_of("close", "count"))
        check_value("--rate", self.rate, (or_none(POSITIVE[0]), POSITIVE[1]))
        for name in ("burst", "room", "batch", "body"):
            check_value(f"--{name}", getattr(self, name), WHOLE)


def need_fastapi() -> None:
    """Say what to install where it is missing."""
    try:
        import fastapi  # noqa: F401 -- only asked whether they are there
        import uvicorn  # noqa: F401
    except ImportError:
        raise SpecError("robustgen serve needs FastAPI and uvicorn; type: pip install 'robustgen[serve]'") from None


class _Service:
    """What requests share."""

    def __init__(
        self, classifier: Classifier, shape: tuple[int, int, int], settings: ServeSettings, monitor: Monitor | None
    ) -> None:
        self.classifier, self.shape, self.settings, self.monitor = classifier, shape, settings, monitor
        self.batcher = Batcher(classifier, batch=settings.batch, room=settings.room, linger=settings.linger)
        self.throttle = Throttle(settings.rate, max(settings.burst, settings.batch))
        self.closed: OrderedDict[str, None] = OrderedDict()
        self.served = self.alarms = 0
        with torch.no_grad():
            self.classes = int(classifier(torch.zeros(1, *shape, device=classifier.mean.device)).shape[1])

    def health(self) -> dict[str, Any]:
        """What is served, and how it has gone."""
        card, settings = self.classifier.card, self.settings
        return {
            "status": "ok", "name": card.name, "sha256": self.classifier.weights_sha256, "classes": self.classes,
            "shape": list(self.shape), "answers": settings.answers, "stochastic": self.classifier.stochastic,
            "most": settings.batch, "monitor": None if self.monitor is None else self.monitor.kind,
            "served": self.served, "waiting": self.batcher.waiting, "alarms": self.alarms, "closed": len(self.closed),
        }  # fmt: skip

    async def predict(self, request: Request) -> dict[str, Any]:
        """The answer to a request, or `Refused`."""
        account = _account(request)
        if account in self.closed:
            raise Refused(403, "this account was closed because its queries look like an attack.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        x = decode(await _read(request, self.settings), kind, self.shape, self.settings.batch)
        wait = self.throttle.take(account, len(x))
        if wait > 0:
            raise Refused(429, f"too many images; come again in {math.ceil(wait)} s.", wait=wait)
        await self._watch(account, x)
        logits = await self.batcher.submit(x.to(self.classifier.mean.device))
        if not logits.isfinite().all():
            raise Refused(500, "the classifier has no finite answer for this image.")
        self.served += len(x)
        answer: dict[str, Any] = {"labels": logits.argmax(1).tolist()}
        if self.settings.answers == "scores":
            answer["scores"] = logits.double().softmax(1).tolist()
        return answer

    async def _watch(self, account: str, x: Tensor) -> None:
        """Show each image to the monitor; an alarm closes the account where it is meant to."""
        if self.monitor is None:
            return
        loop = asyncio.get_running_loop()
        for image in x:
            if not await loop.run_in_executor(self.batcher.pool, self.monitor.see, account, image):
                continue
            self.alarms += 1
            if self.settings.alarm == "close":
                self.closed[account] = None
                if len(self.closed) > _CLOSED:
                    self.closed.popitem(last=False)
                raise Refused(403, "this account was closed because its queries look like an attack.")


def _account(request: Request) -> str:
    """What the client calls itself, else where it comes from."""
    named = request.headers.get("x-account", "")[:64]
    return f"account {named}" if named else f"address {request.client.host if request.client else ''}"


async def _read(request: Request, settings: ServeSettings) -> bytes:
    """The body, while it is small enough and comes in time."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.patience):
            async for part in request.stream():
                size += len(part)
                if size > settings.body:
                    raise Refused(413, f"a request holds at most {settings.body} bytes.")
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"a request must be in within {settings.patience:g} s.") from None
    return b"".join(parts)


def create_app(
    classifier: Classifier, shape: tuple[int, int, int], settings: ServeSettings, monitor: Monitor | None = None
) -> FastAPI:
    """The application around a classifier.

    Args:
        classifier: what answers.
        shape: (C, H, W) of the images that it takes.
        settings: limits.
        monitor: what watches the queries, or None.
    """
    from contextlib import asynccontextmanager

    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    service = _Service(classifier, shape, settings, monitor)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> Any:
        yield
        await service.batcher.stop()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.service = service

    def refuse(status: int, sentence: str, wait: float | None = None) -> JSONResponse:
        headers = None if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
        return JSONResponse({"error": sentence}, status, headers)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await go_on(request)
        except Exception as error:  # noqa: BLE001 -- the last line of defence: nobody outside sees a traceback
            log.warning("%s %s failed: %s: %s", request.method, request.url.path, type(error).__name__, error)
            return refuse(500, "the classifier failed on this image.")

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return refuse(error.status_code, f"{request.method} {request.url.path} is unknown; POST /predict, GET /health.")

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> JSONResponse:
        return refuse(error.status, error.sentence, error.wait)

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse(service.health())

    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(await service.predict(request))

    app.add_route("/health", health, methods=["GET"])
    app.add_route("/predict", predict, methods=["POST"])
    return app
