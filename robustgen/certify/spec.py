"""What a certification depends on; read without torch, as boards do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustgen.errors import RecordError, SpecError
from robustgen.fields import POSITIVE, SEED, TEXT, WHOLE, Rule, check_value, each, number
from robustgen.spec import Spec

if TYPE_CHECKING:  # these need torch or SciPy
    from robustgen.certify.design import Design
    from robustgen.certify.noise import GridNoise
    from robustgen.threat import Norm

__all__ = ["CertificationSpec", "certified_norm"]


def certified_norm(noise: str) -> Norm:
    """The norm of the radii that a noise certifies: L2 for normal noise, L1 for the others."""
    return "l2" if noise == "normal" else "l1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificationSpec(Spec):
    """A certification to be made; two with the same identity give the same certificates.

    Attributes:
        classifier, weights_sha256: what is smoothed, with its denoiser where there is one.
        data, data_sha256, ids: the examples.
        noise, sigma, bits: see `GridNoise`.
        method, profile, radii, samples, selection, alpha: see `make_design` and `certify`.
        seed: of all noise.
        precision: form of the certified function.
        schema: of this file.
    """

    classifier: str
    weights_sha256: str
    data: str
    data_sha256: str
    ids: str
    noise: str
    sigma: float
    bits: int
    method: str
    profile: str
    radii: tuple[float, ...]
    samples: int
    selection: int
    alpha: float
    seed: int
    precision: str
    schema: int = 1

    @classmethod
    def from_json(cls, table: Any, source: str) -> CertificationSpec:
        """Read a spec.json; see `Spec.from_json`."""
        spec = super(CertificationSpec, cls).from_json(table, source)
        try:
            for name, rule in _RULES.items():
                check_value(name, getattr(spec, name), rule)
        except SpecError as error:
            raise RecordError(f"{source}: {error}") from None
        return spec

    @classmethod
    def kind(cls) -> str:
        """How messages call it."""
        return "certification"

    @property
    def norm(self) -> Norm:
        """Of the radii: normal noise certifies in L2, the others in L1."""
        return certified_norm(self.noise)

    def design(self, pixels: int) -> Design:
        """Looks and boundaries for images of so many pixels."""
        from robustgen.certify.design import make_design

        return make_design(
            self.method, radii=self.radii, noise=self.grid_noise(), pixels=pixels, samples=self.samples,
            alpha=self.alpha, profile=self.profile,
        )  # fmt: skip

    def grid_noise(self) -> GridNoise:
        """The noise."""
        from robustgen.certify.noise import GridNoise

        return GridNoise(self.sigma, self.noise, self.bits)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("classifier", "weights_sha256", "data", "data_sha256", "ids", "noise", "method"), TEXT),
    "profile": TEXT, "precision": TEXT, "sigma": POSITIVE, "bits": WHOLE, "samples": WHOLE, "selection": WHOLE,
    "alpha": (number(0, 1, open_low=True), "a number in (0, 1)"), "seed": SEED,
    "radii": (each(number(0, math.inf)), "a list of numbers >= 0"),
}  # fmt: skip
