"""What one step of training does with its batch: the interface, its registry, and how a recipe's options reach it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from robustgen.errors import SpecError, unknown_name
from robustgen.registry import Registry
from robustgen.rng import ExampleRng
from robustgen.threat import BALLS, ThreatModel

__all__ = ["METHODS", "Attacked", "Method", "Remade", "make_method", "register_method"]


@dataclass(frozen=True, slots=True)
class Attacked:
    """A batch after the inner maximisation.

    Attributes:
        x: (B, C, H, W) in [0, 1], the images to train on.
        clean: (B, K) logits of the images as they are, with their graph, where the attack needed them anyway.
        near: (B, C, H, W), a second point near each image, for methods that compare two.
    """

    x: Tensor
    clean: Tensor | None = None
    near: Tensor | None = None


class Method(Protocol):
    """A frozen keyword-only dataclass of hyper-parameters: attack the batch, then say what is to be minimised.

    Images are (B, C, H, W) in [0, 1]; labels y are (B,) int64, or (B, K) probabilities where augmentation mixes images.
    """

    guarded: ClassVar[bool]  # whether catastrophic overfitting is to be watched for

    @property
    def threat(self) -> ThreatModel | None:
        """What it trains against."""

    @property
    def steps(self) -> int:
        """Gradient steps of the attack inside training; 0 for none."""

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        """The inner maximisation; the model is in training mode, its running statistics stay as they are."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        """The mean loss, to be differentiated for the parameters."""

    def stronger(self) -> Self:
        """The same with an attack of one more step."""


@runtime_checkable
class Remade(Protocol):
    """A method made for images that are changed at random, noised or ablated: it is by these that it is measured."""

    def measured_on(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """Images (B, C, H, W) as accuracy on held-out ones is measured."""


METHODS: Registry[Any] = Registry("method", "robustgen.training.methods")

register_method = METHODS.register

_GIVEN = ("threat", "label_smoothing")  # fields of every method, which the recipe names for itself


def make_method(name: str, *, threat: ThreatModel | None, label_smoothing: float, options: Mapping[str, Any]) -> Method:
    """A method with what a recipe says of it.

    Args:
        name: in `METHODS`.
        threat: what to train against.
        label_smoothing: in [0, 1).
        options: the method's other fields; what is left out has the method's own default.

    Raises:
        SpecError: no such method or option, or a value that makes no sense for it.
    """
    if name not in METHODS:
        raise unknown_name("training.method", name, METHODS)
    if threat is not None and threat.norm not in BALLS:
        raise SpecError(f"training.threat: training knows {', '.join(BALLS)}, got {threat}; type for example linf:0.1.")
    kind = METHODS[name]
    takes = [entry.name for entry in fields(kind) if entry.name not in _GIVEN]
    for key in options:
        if key not in takes:
            raise SpecError(_refusal(name, key, takes))
    if kind.guarded and options.get("steps", 1) != 1:
        raise SpecError(
            f"training.steps: method '{name}' takes one step, got {options['steps']}; use method = \"pgd-at\"."
        )
    method: Method = kind(threat=threat, label_smoothing=label_smoothing, **options)
    return method


def _refusal(name: str, key: str, takes: list[str]) -> str:
    if not takes:
        return f"training.{key}: method '{name}' has no such option, nor any other; remove the line."
    return str(unknown_name(f"option of method {name}", key, takes))
