"""What the tests of server and client share: a served classifier, asked inside the process or through a socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn

from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.service.app import ServeSettings, create_app
from robustgen.service.monitors import Monitor
from tests.helpers import make_linear

SHAPE = (1, 8, 8)


def served(monitor: Monitor | None = None, classifier: Classifier | None = None, **settings: Any) -> Any:
    """The application around a linear classifier of four classes."""
    return create_app(classifier or load_classifier(make_linear(SHAPE)), SHAPE, ServeSettings(**settings), monitor)


def ask_app(app: Any, *requests: dict[str, Any], together: bool = False) -> list[httpx2.Response]:
    """The answers of an application to requests, without a socket."""

    async def work() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            calls = [client.request(**{"method": "POST", "url": "/predict", **request}) for request in requests]
            answers = list(await asyncio.gather(*calls)) if together else [await call for call in calls]
        await app.state.service.batcher.stop()
        return answers

    return asyncio.run(work())


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The application at an address of this machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()
