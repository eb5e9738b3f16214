"""The client: patience, budgets and the cache, against servers that misbehave on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import torch

from robustgen.errors import RemoteError, SpecError
from robustgen.remote import Remote, check_plan, probe
from robustgen.request import is_address
from robustgen.service.client import Client
from robustgen.service.images import decode
from tests.helpers import make_linear
from tests.serve_helpers import SHAPE

HEALTH = {
    "name": "net", "sha256": "ab" * 32, "classes": 4, "shape": list(SHAPE), "answers": "labels", "stochastic": False,
    "most": 4,
}  # fmt: skip
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(2))
NET = make_linear(SHAPE)


class Fake:
    """A server that answers right, unless `wrong` gives another answer to the n-th request of /predict (from 0)."""

    def __init__(self, wrong: Callable[[int], Any] = lambda _n: None, **health: Any) -> None:
        self.wrong, self.health = wrong, {**HEALTH, **health}
        self.images: list[int] = []
        self.accounts: list[str] = []
        self.slept: list[float] = []
        self.now = 0.0

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/health":
            return httpx2.Response(200, json=self.health)
        x = decode(request.content, "application/json", SHAPE, 64)
        self.images.append(len(x))
        self.accounts.append(request.headers.get("x-account", ""))
        other = self.wrong(len(self.images) - 1)
        if isinstance(other, Exception):
            raise other
        if other is not None:
            return other
        answer: dict[str, Any] = {"labels": NET(x).argmax(1).tolist()}
        if self.health["answers"] == "scores":
            answer["scores"] = NET(x).double().softmax(1).tolist()
        return httpx2.Response(200, json=answer)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def client(self, **options: Any) -> Client:
        return Client(
            "http://there/", transport=httpx2.MockTransport(self.handle), sleep=self.sleep, clock=lambda: self.now,
            chance=lambda: 0.5, **options,
        )  # fmt: skip


def test_answers_and_cache() -> None:
    """One-hot labels or log-probabilities; each image is sent once, in chunks, repeats within a batch too."""
    fake = Fake(answers="scores")
    client = fake.client()
    twice = torch.cat([X, X[:2]])
    torch.testing.assert_close(client.ask(twice), NET(twice).log_softmax(1), atol=1e-5, rtol=1e-5)
    assert [4, 2] == fake.images
    client.ask(X[3:5])
    assert (6, 4) == (client.sent, client.cached)
    client.ask(X[:1], again=True)
    assert [4, 2, 1] == fake.images
    labels = Fake().client().ask(X)
    assert torch.equal(labels, torch.nn.functional.one_hot(NET(X).argmax(1), 4).float())
    chance = Fake(stochastic=True)
    client = chance.client()
    client.ask(X[:1])
    client.ask(X[:1])
    assert [1, 1] == chance.images


def test_sure_scores_keep_their_order() -> None:
    """Probabilities that round to 0 in float32 still have finite logarithms, in the order of the logits."""

    def sure(_n: int) -> httpx2.Response:
        scores = torch.tensor([[0.0, -200.0, -400.0, -600.0]], dtype=torch.float64).softmax(1)
        return httpx2.Response(200, json={"labels": [0], "scores": scores.tolist()})

    logits = Fake(sure, answers="scores").client().ask(X[:1])
    torch.testing.assert_close(logits, torch.tensor([[0.0, -200.0, -400.0, -600.0]]))


def test_retries_wait_longer_each_time_or_as_the_server_says() -> None:
    """Three failures of three kinds, then an answer; jitter 0.5 makes the waits those of the schedule."""
    busy = httpx2.Response(429, headers={"retry-after": "7"}, json={"error": "slow down."})
    errors = [httpx2.Response(500, text="oops"), httpx2.ReadTimeout("slow"), busy]
    fake = Fake(lambda n: errors[n] if n < 3 else None)
    client = fake.client()
    client.ask(X[:2])
    assert [0.5, 1.0] == fake.slept[:2]
    assert 7.05 == pytest.approx(fake.slept[2])
    assert 2 == client.sent, "a repeated try counts once"


GARBAGE: list[tuple[Any, str]] = [
    (httpx2.Response(200, text="<html>"), "no JSON"),
    (httpx2.Response(200, text="[" * 100_000), "no JSON"),
    (httpx2.Response(200, json=[1]), "expected 1 labels"),
    (httpx2.Response(200, json={"labels": [1, 2]}), "expected 1 labels"),
    (httpx2.Response(200, json={"labels": ["a"]}), "labels outside 0 .. 3"),
    (httpx2.Response(200, json={"labels": [4]}), "labels outside 0 .. 3"),
    (httpx2.Response(200, json={"labels": [True]}), "labels outside 0 .. 3"),
    (httpx2.Response(400, json={"error": "no."}), r"refuses the request \(status 400: no.\)"),
    (httpx2.Response(403, json={"error": "closed."}), "status 403: closed."),
    (httpx2.Response(500, text="x"), r"no answer after 6 tries \(status 500: no sentence"),
    (httpx2.ConnectError("refused"), r"no answer after 6 tries \(ConnectError: refused\)"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "says"), GARBAGE)
def test_what_a_server_can_do_wrong(answer: Any, says: str) -> None:
    """One sentence each, with what happens to finished work."""
    with pytest.raises(RemoteError, match=says) as error:
        Fake(lambda _n: answer).client().ask(X[:1])
    assert "what is finished is kept" in str(error.value)


@pytest.mark.parametrize(
    "scores", [[[0.5] * 4], [[1.0, 0, 0]], [["a"]], [[1e400, 0, 0, 0]], [[2.0, -1.0, 0, 0]], [[[1]]]]
)
def test_scores_must_be_probabilities(scores: list[Any]) -> None:
    """Anything else is garbage."""
    answer = httpx2.Response(200, text=json.dumps({"labels": [0], "scores": scores}))
    with pytest.raises(RemoteError, match="scores that are no"):
        Fake(lambda _n: answer, answers="scores").client().ask(X[:1])


@pytest.mark.parametrize(
    "health", [{"classes": 0}, {"answers": "logits"}, {"shape": [1, 8]}, {"most": "x"}, {"stochastic": 1}]
)
def test_health_must_make_sense(health: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(RemoteError, match="something else than a server"):
        Fake(**health).client()


def test_budgets() -> None:
    """No image beyond the queries, no request after the seconds, no wait that ends after them."""
    fake = Fake()
    client = fake.client(queries=5)
    client.ask(X[:3])
    client.ask(X[:3])
    with pytest.raises(RemoteError, match=r"budget of 5 queries is spent \(3 sent\)"):
        client.ask(X[2:])
    assert [3] == fake.images
    late = Fake()
    client = late.client(seconds=10)
    client.ask(X[:1])
    late.now = 10.0
    with pytest.raises(RemoteError, match="--total-seconds are over"):
        client.ask(X[1:2])
    slow = Fake(lambda _n: httpx2.Response(429, headers={"retry-after": "60"}))
    with pytest.raises(RemoteError, match="next try is due after"):
        slow.client(seconds=10).ask(X[:1])
    assert [] == slow.slept
    never = Fake(lambda _n: httpx2.Response(429, headers={"retry-after": "1e9"}))
    with pytest.raises(RemoteError, match="asks to wait 1000000000 s"):
        never.client().ask(X[:1])
    for options, says in (({"queries": 0}, "--total-queries must"), ({"seconds": -1.0}, "--total-seconds must")):
        with pytest.raises(SpecError, match=says):
            Fake().client(**options)


def test_a_closed_account_is_left_for_the_next() -> None:
    """403 moves on, until none is left."""
    fake = Fake(lambda n: httpx2.Response(403, json={"error": "closed."}) if n in {1, 3} else None)
    client = fake.client(accounts=["a", "b"])
    client.ask(X[:1])
    client.ask(X[1:2])
    assert ["a", "a", "b"] == fake.accounts
    with pytest.raises(RemoteError, match="status 403: closed"):
        client.ask(X[2:3])


def test_changing_answers_are_found_at_once() -> None:
    """The first image is asked twice: a change is refused, unless the server says that it is random."""
    other = httpx2.Response(200, json={"labels": [(int(NET(X[:1]).argmax()) + 1) % 4]})
    with pytest.raises(SpecError, match="changes its answers: the same image got two"):
        probe(Remote(Fake(lambda n: other if n == 1 else None).client()), X, [0, 1])
    honest = Fake()
    assert [] == probe(Remote(honest.client()), X, [0, 1])
    assert [1, 1] == honest.images
    assert ["randomised"] == probe(Remote(Fake(stochastic=True).client()), X, [0])
    with pytest.raises(SpecError, match=r"label 9 is not in 0 \.\. 3"):
        probe(Remote(honest.client()), X, [0, 9])


def test_what_may_attack_it() -> None:
    """No gradients; no scores where there are labels."""
    from robustgen.attacks.plans import Plan, parse_attack

    labels, scores = (Remote(Fake(answers=kind).client()) for kind in ("labels", "scores"))
    for remote, attack, says in (
        (labels, "pgd", "asks for gradients, and http://there gives labels; type --attacks hopskipjump"),
        (labels, "square", "asks for scores, and http://there gives labels"),
        (scores, "pgd", "asks for gradients, and http://there gives scores; type --attacks square,hopskipjump"),
    ):
        with pytest.raises(SpecError, match=says):
            check_plan(remote, Plan("custom", 1, (parse_attack(attack),)))
    check_plan(scores, Plan("custom", 1, (parse_attack("square"), parse_attack("hopskipjump"))))
    assert is_address("https://a")
    assert not is_address("fmnist-at")
    assert not labels.stochastic
    assert labels.weights_sha256 != scores.weights_sha256
