"""The server: what it answers, what it refuses and how, limits, batches, and what never leaves it."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.errors import SpecError
from robustgen.service.app import ServeSettings
from robustgen.service.images import encode
from robustgen.service.throttle import Throttle
from tests.helpers import make_linear
from tests.serve_helpers import SHAPE, ask_app, served

JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}
X = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def bomb() -> bytes:
    """A small PNG that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        + chunk(b"IEND", b"")
    )


def test_all_forms_get_the_same_answer() -> None:
    """A nested list, base64 of float32 and of bytes, and a PNG; scores are the softmax in float64."""
    levels = (255 * X[0, 0]).round().to(torch.uint8)
    x = (levels.float() / 255)[None, None]
    data = base64.b64encode(levels.numpy().tobytes()).decode()
    answers = ask_app(
        served(answers="scores"),
        {"json": {"image": x[0].tolist()}},
        {"content": encode(x), "headers": JSON},
        {"json": {"image": {"shape": [1, 1, 8, 8], "dtype": "uint8", "data": data}}},
        {"content": png(levels.numpy()), "headers": PNG},
        {"content": encode(X), "headers": JSON},
    )
    assert [200] * 5 == [answer.status_code for answer in answers]
    net = make_linear(SHAPE)
    expected = net(x).double().softmax(1)
    for answer in answers[:4]:
        torch.testing.assert_close(torch.tensor(answer.json()["scores"], dtype=torch.float64), expected)
        assert answer.json()["labels"] == net(x).argmax(1).tolist()
    assert answers[4].json()["labels"] == net(X).argmax(1).tolist()


def test_labels_alone() -> None:
    """Nothing but the class, and health says what is served."""
    answers = ask_app(served(), {"content": encode(X), "headers": JSON}, {"method": "GET", "url": "/health"})
    assert {"labels": make_linear(SHAPE)(X).argmax(1).tolist()} == answers[0].json()
    said = answers[1].json()
    assert ("ok", [1, 8, 8], 4, "labels", 3) == tuple(
        said[k] for k in ("status", "shape", "classes", "answers", "served")
    )
    assert said["sha256"] == load_classifier(make_linear(SHAPE)).weights_sha256


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"content": b"{", "headers": JSON}, 400, "expected JSON such as"),
    ({"content": b"[" * 100_000, "headers": JSON}, 400, "nested too deep|expected JSON"),
    ({"json": [1, 2]}, 400, "expected JSON such as"),
    ({"json": {"image": "cat"}}, 400, "list of channels of rows of numbers"),
    ({"json": {"image": [[[1, 2], [3]]]}}, 400, "list of channels of rows of numbers"),
    ({"json": {"image": [[["0.5"] * 8] * 8]}}, 400, "list of channels of rows of numbers"),
    ({"json": {"image": [[[10**400] * 8] * 8]}}, 400, "list of channels of rows of numbers"),
    ({"json": {"image": [[[0.5] * 8] * 7]}}, 400, r"image must be of shape \(1, 8, 8\)"),
    ({"json": {"image": [[[2.0] * 8] * 8]}}, 400, r"finite number in \[0, 1\]"),
    ({"content": b'{"image": [[[NaN]]]}', "headers": JSON}, 400, "image must be of shape"),
    ({"content": json.dumps({"image": [[[float("nan")] * 8] * 8]}), "headers": JSON}, 400, "finite number"),
    ({"json": {"image": {"shape": [1, 8, 8], "data": "AAAA"}}}, 400, "must hold 256 bytes"),
    ({"json": {"image": {"shape": [1, 8, 8], "data": "!"}}}, 400, "must be base64"),
    ({"json": {"image": {"shape": [1, -8, 8], "data": ""}}}, 400, "shape must be a list"),
    ({"json": {"image": {"shape": [1, 8, 8], "dtype": "object", "data": ""}}}, 400, "dtype must be float32 or uint8"),
    ({"content": encode(X.repeat(30, 1, 1, 1)), "headers": JSON}, 400, "holds 1 to 64 images, got 90"),
    ({"content": b"not a picture", "headers": PNG}, 400, "no PNG that can be read"),
    ({"content": bomb(), "headers": PNG}, 400, "PNG must be of 8 x 8 pixels, mode L, got one that is far"),
    ({"content": png(np.zeros((900, 900), np.uint8)), "headers": PNG}, 400, "mode L, got 900 x 900, mode L"),
    ({"content": png((255 * X[0, 0].numpy()).astype(np.uint8))[:60], "headers": PNG}, 400, "no PNG that can be read"),
    ({"content": png(np.zeros((8, 8, 3), np.uint8)), "headers": PNG}, 400, "mode L, got 8 x 8, mode RGB"),
    ({"content": b"\x80\x04N.", "headers": {"content-type": "application/octet-stream"}}, 415, "content-type must be"),
    ({"content": b"0" * 9 * 2**20, "headers": JSON}, 413, "at most 8388608 bytes"),
    ({"url": "/other"}, 404, "POST /other is unknown"),
    ({"method": "GET"}, 405, "GET /predict is unknown"),
]  # fmt: skip


def test_bad_requests_get_one_sentence() -> None:
    """A status and {"error": sentence}, and the server goes on."""
    answers = ask_app(served(), *(request for request, _, _ in REFUSED), {"content": encode(X), "headers": JSON})
    for answer, (_, status, says) in zip(answers, REFUSED, strict=False):
        assert (status, ["error"]) == (answer.status_code, list(answer.json())), says
        assert re.search(says, answer.json()["error"]), answer.json()
        assert "Traceback" not in answer.text
    assert 200 == answers[-1].status_code


class Sick(nn.Module):
    """Raises on dark images, has no number for bright ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_linear(SHAPE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 4)."""
        if float(x.max()) > 0 and float(x.mean()) < 0.01:
            raise ValueError("secret path of a file")
        return self.net(x) + torch.where(x.mean((1, 2, 3)) > 0.99, torch.nan, 0.0)[:, None]


def test_a_failing_classifier_shows_nothing_of_itself() -> None:
    """500 and one sentence for exceptions and for answers that are not finite; others are served afterwards."""
    app = served(classifier=load_classifier(Sick()))
    dark = torch.zeros(1, *SHAPE)
    dark[0, 0, 0, 0] = 0.1
    answers = ask_app(app, *({"content": encode(x), "headers": JSON} for x in (dark, torch.ones(1, *SHAPE), X)))
    assert [500, 500, 200] == [answer.status_code for answer in answers]
    assert "secret" not in answers[0].text
    assert "no finite answer" in answers[1].json()["error"]


def test_requests_that_come_together_share_a_batch() -> None:
    """Twenty requests at once are a few passes; each gets its own answer; more than the room is refused with a time."""
    sizes = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_linear(SHAPE)

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            logits: Tensor = self.net(x)
            return logits

    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1))
    requests = [{"content": encode(image[None]), "headers": JSON} for image in x]
    app = served(classifier=load_classifier(Counting()), batch=8, linger=0.2)
    sizes.clear()
    answers = ask_app(app, *requests, together=True)
    assert [a.json()["labels"][0] for a in answers] == make_linear(SHAPE)(x).argmax(1).tolist()
    assert 20 == sum(sizes)
    assert len(sizes) <= 5
    assert max(sizes) <= 8
    full = ask_app(served(batch=8, room=5, linger=0.2), *requests, together=True)
    assert {200, 503} == {a.status_code for a in full}
    assert all(a.headers["retry-after"] == "1" for a in full if a.status_code == 503)


def test_rate_is_by_account_and_says_when_to_come_again() -> None:
    """The bucket of one account is empty, that of another is not."""
    headers = {**JSON, "x-account": "a"}
    other = {**JSON, "x-account": "b"}
    app = served(rate=0.5, burst=4, batch=4)
    answers = ask_app(app, *({"content": encode(X), "headers": h} for h in (headers, headers, other)))
    assert [200, 429, 200] == [a.status_code for a in answers]
    assert "4" == answers[1].headers["retry-after"]


def test_token_bucket() -> None:
    """Tokens come back with time, never beyond the burst; who is refused pays nothing."""
    now = [0.0]
    throttle = Throttle(2.0, 4, lambda: now[0])
    assert 0 == throttle.take("a", 4)
    assert 1.5 == throttle.take("a", 3)
    now[0] = 1.5
    assert 0 == throttle.take("a", 3)
    now[0] = 100.0
    assert 0 == throttle.take("a", 4)
    assert 0.5 == throttle.take("a", 1)
    assert 0 == Throttle(None, 1).take("a", 1000)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"answers": "logits"}, "--answers must be one of"),
        ({"rate": 0.0}, "--rate must be"),
        ({"room": 0}, "--room must"),
    ],
)
def test_bad_settings(settings: dict[str, Any], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        ServeSettings(**settings)


def test_the_command_refuses_before_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name, an address, an unknown monitor."""
    for arguments, says in (
        (["fmnist-standart"], "did you mean 'fmnist-standard'"),
        (["http://127.0.0.1:1"], "is a server already"),
        (["--answers", "logits"], "--answers must be one of"),
        (["--monitor", "blacklite"], "did you mean 'blacklight'"),
    ):
        assert _run(["serve", *arguments]) == 2
        assert says in capsys.readouterr().err
