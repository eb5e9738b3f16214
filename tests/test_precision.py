"""Search forms: same answers, safe fallbacks, recorded choices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustgen import precision
from robustgen.errors import SpecError
from robustgen.precision import SearchForm, SearchModel, choose_form, parse_form
from tests.helpers import make_convnet, make_images

FORMS = [
    SearchForm(dtype, c, f) for dtype in (torch.float32, torch.bfloat16) for c in (False, True) for f in (False, True)
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms_round_trip_and_answer_alike(form: SearchForm) -> None:
    """Folding, layout and bfloat16 change logits by rounding only, and gradients still flow."""
    assert form == parse_form(str(form))
    model = make_convnet(channels=3)
    x, _ = make_images(model, 16, (3, 12, 10))
    leaf = x.clone().requires_grad_()
    logits = SearchModel(model, form)(leaf)
    assert torch.float32 == logits.dtype
    spread = model(x).abs().amax()
    assert (logits - model(x)).abs().amax() <= (1e-5 if form.dtype is torch.float32 else 0.05) * spread
    (grad,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
    assert grad.abs().sum() > 0
    assert torch.float32 == grad.dtype


def test_folding_removes_the_batch_norm_and_leaves_the_original() -> None:
    """The copy has none left; the classifier that judges keeps its own."""
    model = make_convnet()
    folded = SearchModel(model, SearchForm(folded=True))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


class Views(nn.Module):
    """Flattens by .view, which a channels-last tensor does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).view(x.shape[0], -1))
        return logits


class Stubborn(nn.Module):
    """Insists on float32 contiguous input, and says what it got."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            raise RuntimeError("contiguous images only")
        return x.flatten(1)[:, :3]


@pytest.mark.parametrize("make", [Views, Stubborn])
def test_models_that_cannot_take_a_form_fall_back(make: type[nn.Module]) -> None:
    """Plain float32 serves, with one note that says why."""
    model = make().eval().requires_grad_(requires_grad=False)
    x = torch.rand(8, 3, 8, 8)
    search, notes = choose_form(model, x, torch.zeros(8, dtype=torch.int64))
    assert str(search.form) == "float32"
    assert "channels_last" in notes[0]
    torch.testing.assert_close(search(x), model(x), rtol=0, atol=0)


def test_a_fold_that_lies_is_not_used() -> None:
    """A network whose traced copy answers differently is searched as it is."""

    class ByMode(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scale = 1.0 if x.is_contiguous() else 5.0  # another answer in another layout
            return scale * x.flatten(1)[:, :3]

    x = torch.rand(8, 3, 8, 8)
    search, notes = choose_form(ByMode().eval(), x, torch.zeros(8, dtype=torch.int64))
    assert str(search.form) == "float32"
    assert "differ" in notes[0] or "contiguous" in notes[0]


def test_no_bfloat16_without_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bfloat16 is slower than float32, so it is not even tried."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    model = make_convnet(channels=3)
    x, y = make_images(model, 16, (3, 12, 10))
    search, _ = choose_form(model, x, y)
    assert torch.float32 == search.form.dtype


def test_a_slower_form_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock decides, and a small gain is not worth a less plain form."""
    seconds = iter([1.0, 0.95, 0.9])
    monkeypatch.setattr(precision, "_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(precision, "_SLOW_PROBE_SECONDS", 0.0)
    model = make_convnet(channels=3)
    x, y = make_images(model, 16, (3, 12, 10))
    search, notes = choose_form(model, x, y)
    assert "float32" == str(search.form)
    assert notes == []


def test_recorded_forms_are_used_again() -> None:
    """A resumed run searches in the form that its record names."""
    model = make_convnet(channels=3)
    x, y = make_images(model, 4, (3, 12, 10))
    search, _ = choose_form(model, x, y, "float32+channels_last+folded")
    assert "float32+channels_last+folded" == str(search.form)


def test_a_form_that_the_network_cannot_take_is_refused() -> None:
    """Asked for by name, it is an error that says why; asked for "auto", the plain form serves."""

    class Picky(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype is not torch.float32:
                raise TypeError("float32 only")
            return x.flatten(1)

    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(SpecError, match=r"bfloat16.*float32 only; the classifier cannot take it, type auto"):
        choose_form(Picky(), x, y, "bfloat16")
    search, _ = choose_form(Picky(), x, y)
    assert str(search.form).startswith("float32")


@pytest.mark.parametrize("text", ["float16", "bfloat16+fast", "auto+folded", ""])
def test_unknown_forms_are_refused(text: str) -> None:
    """One sentence."""
    with pytest.raises(SpecError, match="precision must be"):
        parse_form(text)
