"""A classifier at an address: `http://HOST:PORT`, which says labels or scores and nothing else.

What is judged elsewhere by an untouched local network is judged here by the same server: there is no other. The record
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustgen.cards import Card
from robustgen.classifier import Classifier
from robustgen.errors import SpecError
from robustgen.precision import standard_layout

if TYPE_CHECKING:
    from robustgen.attacks.plans import Plan
    from robustgen.request import Request
    from robustgen.service.client import Client

__all__ = ["Remote", "StandIn", "check_plan", "load_asked", "load_remote", "notes_of", "probe"]


class _Asking(nn.Module):
    """Images to what the server says."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def forward(self, x: Tensor) -> Tensor:
        return self.client.ask(standard_layout(x))


class Remote(Classifier):
    """A server as a classifier without gradients; `weights_sha256` is the hash of what it says of itself."""

    def __init__(self, client: Client) -> None:
        served = client.served
        card = Card(
            name=client.url, title=f"{served.name}, as {client.url} says", architecture="remote",
            channels=served.shape[0], size=served.shape[1:], classes=served.classes, source=client.url,
        )  # fmt: skip
        super().__init__(_Asking(client), card, weights_sha256=served.digest)
        self.client = client


class StandIn(nn.Module):
    """Zeros for every class: what attacks are tried on before the server is asked anything."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return 0 * x.flatten(1)[:, :1].expand(-1, self.classes)


def load_remote(
    url: str, *, shape: tuple[int, int, int] | None = None, accounts: Sequence[str] = (), queries: int | None = None,
    seconds: float | None = None,
) -> Remote:  # fmt: skip
    """The classifier at an address, which must be up.

    Args:
        url: such as http://127.0.0.1:8000.
        shape: (C, H, W) of the images that it will be sent.
        accounts, queries, seconds: as `Client` takes them.

    Raises:
        RemoteError: nobody answers, or not as agreed.
        SpecError: it takes other images.
    """
    from robustgen.service.client import Client

    client = Client(url, accounts=accounts, queries=queries, seconds=seconds)
    if shape is not None and client.served.shape != shape:
        raise SpecError(f"{url} takes images of shape {client.served.shape}, the data has {shape}.")
    return Remote(client)


def load_asked(request: Request, shape: tuple[int, int, int]) -> Remote:
    """The classifier of a request that names an address.

    Raises:
        RemoteError, SpecError: as `load_remote`; or something that only a local classifier takes.
    """
    url = str(request.classifier)
    if request.purify is not None or request.weights is not None or request.gradient != "full":
        raise SpecError(f"{url} answers as it is; drop --purify, --gradient and --weights.")
    accounts = [part.strip() for part in (request.account or "").split(",") if part.strip()]
    limits = {"queries": request.total_queries, "seconds": request.total_seconds}
    return load_remote(url, shape=shape, accounts=accounts, **limits)  # type: ignore[arg-type]


def check_plan(remote: Remote, plan: Plan) -> None:
    """Whether every attack gets by on what the server says.

    Raises:
        SpecError: one asks for gradients, or for scores where there are labels; the first is named.
    """
    from robustgen.attacks.base import sees
    from robustgen.registry import ATTACKS

    said = remote.client.served.answers
    for attack in plan.unconditional():
        wants, name = sees(attack), ATTACKS.name_of(attack)
        if wants == "gradients" or (wants == "scores" and said == "labels"):
            raise SpecError(
                f"attack '{name}' asks for {wants}, and {remote.card.name} gives {said}; type "
                f"--attacks {'hopskipjump' if said == 'labels' else 'square,hopskipjump'}, or --surrogates NAME."
            )


def probe(remote: Remote, x: Tensor, labels: Sequence[int]) -> list[str]:
    """Ask for the first of the images x (B, C, H, W) twice, which costs two queries.

    Returns:
        Health flags: "randomised" where the server says that it is.

    Raises:
        SpecError: a label that it has no class for, or answers that change although it says that they do not.
    """
    classes = remote.client.served.classes
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise SpecError(f"label {wrong[0]} is not in 0 .. {classes - 1}: {remote.card.name} has {classes} classes.")
    first = remote(x[:1])
    if not remote.client.caches:
        return ["randomised"]
    if not torch.equal(first, remote.client.ask(x[:1], again=True)):
        raise SpecError(
            f"{remote.card.name} changes its answers: the same image got two; a defence that is random must say so "
            '("stochastic" in /health), then each verdict is a majority.'
        )
    return []


def notes_of(classifier: Classifier) -> list[str]:
    """What a record says of a target that nobody here can look into; nothing of any other."""
    if not isinstance(classifier, Remote):
        return []
    served, url = classifier.client.served, classifier.card.name
    told = f"it says that it serves {served.name}, sha256 {served.sha256[:12]}, which nobody here can check"
    how = "attacks and judge asked the same server, and there were no health checks"
    return [f"remote: the target at {url} gave {served.answers}; {told}; {how}."]
