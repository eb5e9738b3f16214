"""What a user asks for, as typed, and what of it can be refused before any file is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from torch import Tensor, nn

from robustgen.adversarials import Adversarials
from robustgen.attacks.base import Attack
from robustgen.attacks.plans import Plan
from robustgen.errors import SpecError
from robustgen.precision import parse_form
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["Request", "check_request", "is_address"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asks for, as typed; see `robustgen.evaluate` for the meaning of each field."""

    classifier: str | nn.Module = "fmnist-at"
    data: str | tuple[Tensor, Tensor] | None = None
    threat: str | ThreatModel | None = None
    plan: str | Plan | None = None  # "adaptive" behind a purifier, "queries", "transfer", else "rapid"
    goal: str | None = None  # that of the plan, else "untargeted"
    attacks: str | Sequence[Attack] | None = None
    queries: int | None = None
    surrogates: str | None = None
    account: str | None = None  # of a target at an address: names with commas
    total_queries: int | None = None
    total_seconds: float | None = None
    start: Adversarials | None = None
    n: int | None = None
    ids: str | Sequence[int] | None = None
    seed: int = 0
    precision: str = "auto"
    purify: str | None = None
    gradient: str = "full"
    eot: int | None = None
    report: str = "accuracy"  # or "distance", of minimum-norm attacks under a threat model without an eps
    weights: str | Path | None = None
    data_dir: str | Path | None = None


def is_address(name: object) -> TypeGuard[str]:
    """Whether a classifier is named by an address."""
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def check_request(request: Request, batch_size: int | None) -> None:
    """Refuse what is wrong in itself; some of it only a Python caller can get wrong.

    Raises:
        SpecError: a value of the wrong kind, or two that exclude each other.
    """
    if request.precision != "auto":
        parse_form(request.precision)
    if batch_size is not None and batch_size < 1:
        raise SpecError(f"--batch-size must be >= 1, got {batch_size}.")
    ExampleRng.of(request.seed, [0])  # checks the seed
    data, kind = request.data, type(request.data).__name__
    if not isinstance(request.classifier, str | nn.Module):
        raise SpecError(f"classifier must be a name or a torch.nn.Module, got a {type(request.classifier).__name__}.")
    if not isinstance(data, str | None) and [isinstance(part, Tensor) for part in data] != [True, True]:
        raise SpecError(
            f"data must be a name or a pair of tensors (images, labels), got a {kind}; see torch.from_numpy."
        )
    if not isinstance(request.threat, str | ThreatModel | None):
        raise SpecError(f"threat must be a text such as 'linf:8/255', got {request.threat!r}.")
    if not isinstance(request.n, int | None):
        raise SpecError(f"--n must be an integer, got {request.n!r}.")
    if request.eot is not None and request.eot < 1:
        raise SpecError(f"--eot must be >= 1, got {request.eot}.")
    paid = (request.account, request.total_queries, request.total_seconds)
    if any(value is not None for value in paid) and not is_address(request.classifier):
        raise SpecError(
            "--account, --total-queries and --total-seconds are for a target at an address such as "
            f"http://127.0.0.1:8000, got {request.classifier}; --queries N holds each attack to a budget."
        )
    if request.surrogates is not None and request.queries is not None:
        raise SpecError("--queries counts what the target is asked, and with --surrogates it is not; drop one of them.")
    if request.queries is not None and request.eot not in (None, 1):
        raise SpecError(f"--queries counts single answers, and --eot {request.eot} averages several; drop one of them.")
    if request.attacks is not None and request.plan is not None:
        raise SpecError("--plan and --attacks exclude each other; drop one of them.")
