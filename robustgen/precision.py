"""In which form a classifier is searched: number format, memory layout, folded batch-norm.

Which form pays depends on the processor: bfloat16 is many times faster where the hardware has it and many times
slower where it has not. So "auto" times the forms on a few images, and the choice is recorded. The judge never uses
any of this.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.rng import ExampleRng

__all__ = ["SearchForm", "SearchModel", "choose_form", "has_bfloat16", "parse_form", "standard_layout"]

log = logging.getLogger(__name__)

_PROBE_ROWS = 64
_SLOW_PROBE_SECONDS = 0.1  # beyond this the timing uses fewer rows
_GAIN = 1.15  # a less plain form must be this much faster to be taken
_PLAIN = "float32"
_LOW = "begins_bfloat16"


@dataclass(frozen=True, slots=True)
class SearchForm:
    """One way to run the network; `str()` and `parse_form` round-trip."""

    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    folded: bool = False
    begins_low: bool = False  # an attack that says so takes its first rounds in bfloat16

    def __str__(self) -> str:
        parts = [str(self.dtype).removeprefix("torch.")]
        parts += ["channels_last"] * self.channels_last + ["folded"] * self.folded
        return "+".join(parts + [_LOW] * self.begins_low)

    @property
    def first(self) -> SearchForm:
        """That of the first rounds."""
        return replace(self, dtype=torch.bfloat16, channels_last=True, begins_low=False) if self.begins_low else self


def parse_form(text: str) -> SearchForm:
    """Read a form as a record holds it: "bfloat16+channels_last+folded"."""
    dtype, *rest = text.split("+")
    if dtype not in ("float32", "bfloat16") or set(rest) - {"channels_last", "folded", _LOW}:
        raise SpecError(
            f"--precision must be auto, float32 or another form such as float32+channels_last+folded, got '{text}'."
        )
    return SearchForm(getattr(torch, dtype), "channels_last" in rest, "folded" in rest, _LOW in rest)


class _Float32Head(nn.Module):
    """The last linear layer, kept in float32: bfloat16 logits are too coarse to compare losses with."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear.float()

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.linear(h.float())
        return out


class SearchModel(nn.Module):
    """The classifier in a `SearchForm`: (B, C, H, W) float32 in [0, 1] -> (B, K) float32.

    A classifier that is made of several networks says itself what it is in a form, by a method `in_form`.
    `early` is the same in the form of the first rounds, where that is another one; else None.

    Raises:
        Exception: whatever the network raises when it cannot take that form; `choose_form` catches it.
    """

    def __init__(self, classifier: nn.Module, form: SearchForm) -> None:
        super().__init__()
        self.form = form
        self.early = SearchModel(classifier, form.first) if form.begins_low else None
        self.stochastic: bool = getattr(classifier, "stochastic", False)
        self.converts = not hasattr(classifier, "in_form")
        if str(form) == _PLAIN:
            self.network: nn.Module = classifier
            return
        if not self.converts:
            self.network = classifier.in_form(form)  # type: ignore[operator]
            return
        network = _fold(classifier) if form.folded else copy.deepcopy(classifier)
        network.eval().requires_grad_(False)
        if form.dtype is not torch.float32:
            network.to(form.dtype)
            _keep_head(network)
        if form.channels_last:
            network.to(memory_format=torch.channels_last)
        self.network = network

    def forward(self, x: Tensor, *streams: ExampleRng) -> Tensor:
        if self.converts:
            x = x.to(self.form.dtype)
            x = x.contiguous(memory_format=torch.channels_last) if self.form.channels_last else standard_layout(x)
        logits: Tensor = self.network(x, *streams)
        return logits.float()


def standard_layout(x: Tensor) -> Tensor:
    """x (B, C, H, W) with the strides of a freshly made tensor.

    `contiguous()` is not enough: with one channel or one row other strides pass for contiguous, convolutions take them
    for channels_last, and a user's `.view` behind them fails.
    """
    return (
        x
        if x.stride() == torch.empty(x.shape, device="meta").stride()
        else x.clone(memory_format=torch.contiguous_format)
    )


def _fold(classifier: nn.Module) -> nn.Module:
    """A copy with each batch-norm that follows a convolution folded into it."""
    from torch.fx.experimental.optimization import fuse

    return fuse(copy.deepcopy(classifier).eval())


def _keep_head(network: nn.Module) -> None:
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if linears:
        name, head = linears[-1]
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, _Float32Head(head))


def choose_form(
    classifier: nn.Module, x: Tensor, y: Tensor, request: str = "auto", *, exact: bool = False, walks: bool = False
) -> tuple[SearchModel, list[str]]:
    """The form to search in.

    Args:
        classifier: eval mode, parameters frozen, on the device of x.
        x, y: some real examples, (B, C, H, W) float32 in [0, 1] and (B,) int64.
        request: "auto" measures; "float32" is the network as it is; anything else is a form to use as it is.
        exact: "auto" stays in float32: for a search along the boundary, where bfloat16 errs on which side a point is.
        walks: with `exact`, the first rounds may be in bfloat16: of attacks that end at the boundary all the same.

    Returns:
        The model to search, and notes that say which forms the network could not take and why.
    """
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):  # a classifier may draw from it
        chosen, notes = _choose(classifier, x, y, request, exact)
        if request == "auto" and exact and walks:
            chosen = _with_low_start(classifier, chosen, x, y)
        return chosen, notes


def _with_low_start(classifier: nn.Module, chosen: SearchModel, x: Tensor, y: Tensor) -> SearchModel:
    """The same form with first rounds in bfloat16, where the network can take them and they are quicker."""
    if chosen.stochastic or not has_bfloat16(x.device):
        return chosen
    low, _ = _first_that_works(classifier, torch.bfloat16, x[:8], _answers(chosen, x[:8]))
    form = replace(chosen.form, begins_low=True)
    x, y = x[:_PROBE_ROWS], y[:_PROBE_ROWS]
    if low is None or low.form != form.first or _seconds(low, x, y) * _GAIN >= _seconds(chosen, x, y):
        return chosen
    return SearchModel(classifier, form)


def _choose(classifier: nn.Module, x: Tensor, y: Tensor, request: str, exact: bool) -> tuple[SearchModel, list[str]]:
    plain = SearchModel(classifier, SearchForm())
    if request != "auto":
        form = parse_form(request)
        if str(form) == _PLAIN:
            return plain, []
        try:
            asked = SearchModel(classifier, form)
            with torch.no_grad():
                asked(x[:1])
        except Exception as error:
            raise SpecError(
                f"--precision {form}: {_reason(error)}; the classifier cannot take it, type auto."
            ) from error
        return asked, []
    x, y = x[:_PROBE_ROWS], y[:_PROBE_ROWS]
    expected = _answers(plain, x)
    best, best_seconds = plain, _seconds(plain, x[:8], y[:8])
    if best_seconds < _SLOW_PROBE_SECONDS:
        best_seconds = _seconds(plain, x, y)
    else:
        x, y, expected = x[:8], y[:8], expected[:8]
    notes = []
    for dtype in (torch.float32, torch.bfloat16) if not exact and has_bfloat16(x.device) else (torch.float32,):
        candidate, why_not = _first_that_works(classifier, dtype, x, expected)
        if candidate is None:
            notes.append(why_not)
            continue
        seconds = _seconds(candidate, x, y)
        log.debug("%s: %.4f s a probe, the best so far %.4f s", candidate.form, seconds, best_seconds)
        if seconds * _GAIN < best_seconds:
            best, best_seconds = candidate, seconds
    return best, notes


def _first_that_works(
    classifier: nn.Module, dtype: torch.dtype, x: Tensor, expected: Tensor
) -> tuple[SearchModel | None, str]:
    """The most ambitious form of this dtype that gives the same answers, or None and why."""
    reason = ""
    for folded in (True, False):
        form = SearchForm(dtype, channels_last=True, folded=folded)
        try:
            candidate = SearchModel(classifier, form)
            with torch.no_grad():
                same = _agrees(_answers(candidate, x), expected, dtype)
                same = same and _agrees(_answers(candidate, x[:1]), expected[:1], dtype)
            leaf = x[:2].clone().requires_grad_()
            torch.autograd.grad(candidate(leaf).sum(), leaf)
        except Exception as error:  # noqa: BLE001 -- any user's network may fail in any way here; the plain form still serves
            reason = _reason(error)
            continue
        if same:
            return candidate, ""
        reason = "its logits differ from those of float32"
    name = str(dtype).removeprefix("torch.")
    return None, f"the classifier cannot be searched in {name} + channels_last ({reason}); a plainer form is used."


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K), with the same chance each time where a model draws."""
    torch.manual_seed(0)
    logits: Tensor = model(x)
    return logits


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _agrees(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Same logits up to the format's rounding, relative to their spread."""
    scale = expected.abs().amax().clamp(min=1e-6)
    error = (logits - expected).abs().amax() / scale
    return bool(error <= (1e-3 if dtype is torch.float32 else 0.1))


def has_bfloat16(device: torch.device) -> bool:
    """Does the hardware multiply bfloat16? Emulation is up to ten times slower, too slow even to be timed."""
    if device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in names)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _seconds(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Best of three white-box queries, after one that warms up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        leaf = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
        torch.autograd.grad(loss, leaf, allow_unused=True)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
