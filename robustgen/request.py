"""What of a request can be refused before any file is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.precision import parse_form
from robustgen.remote import is_address
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

if TYPE_CHECKING:
    from robustgen.prepare import Request

__all__ = ["check_request"]


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
