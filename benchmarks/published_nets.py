"""Our networks of published checkpoints beside RobustBench's own classes: parameter names, shapes, and logits.

    python -m robustgen.benchmarks.published_nets

Needs the extra `robustbench`. What it stores are fingerprints of RobustBench's names and shapes, so that the tests can
compare without it, and the largest difference of logits for the same weights.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from robustgen.benchmarks.harness import store
from robustgen.nets import build_network

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # ours leave the normalisation to the card
SMALL = {"depth": 16, "width": 2}
WIDE = (("WRN-28-10", 28, 10), ("WRN-34-10", 34, 10), ("WRN-70-16", 70, 16))


def fingerprint(network: nn.Module) -> str:
    """Of the names and shapes in a state dict, in its order."""
    text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in network.state_dict().items())
    return sha256(text.encode()).hexdigest()


def main() -> None:
    """Compare, print, store."""
    import pyautoattack

    sys.modules.setdefault("autoattack", pyautoattack)  # which RobustBench imports under its old name
    from robustbench.model_zoo.architectures.dm_wide_resnet import DMPreActResNet, DMWideResNet

    rows: list[dict[str, Any]] = []
    for name, depth, width in WIDE:
        with torch.device("meta"):
            ours = build_network("same-wide-resnet", depth=depth, width=width)
            theirs = DMWideResNet(depth=depth, width=width, activation_fn=nn.SiLU, **PLAIN)
        options = {"depth": depth, "width": width}
        rows.append(_row(name, "same-wide-resnet", options, ours, theirs))
    with torch.device("meta"):
        ours, theirs = build_network("same-preact-resnet"), DMPreActResNet(activation_fn=nn.SiLU, **PLAIN)
    rows.append(_row("PreActResNet-18", "same-preact-resnet", {}, ours, theirs))
    torch.manual_seed(0)
    small = DMWideResNet(**SMALL, activation_fn=nn.SiLU, **PLAIN)
    preact = DMPreActResNet(activation_fn=nn.SiLU, **PLAIN)
    differences = {
        "WRN-16-2": _difference(build_network("same-wide-resnet", **SMALL), small),
        "PreActResNet-18": _difference(build_network("same-preact-resnet"), preact),
    }
    result = {"rows": rows, "largest_difference_of_logits": differences}
    print(result)
    print(store("published_nets", result))


def _row(name: str, architecture: str, options: dict[str, int], ours: nn.Module, theirs: nn.Module) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": architecture,
        "options": options,
        "parameters": sum(parameter.numel() for parameter in theirs.parameters()),
        "tensors": len(theirs.state_dict()),
        "fingerprint": fingerprint(theirs),
        "equal": fingerprint(ours) == fingerprint(theirs),
    }


def _difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Of the logits, with their state dict loaded into ours after some training-mode passes."""
    x = torch.rand(8, 3, 32, 32)
    theirs.train()(x)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        return float((ours.eval()(x) - theirs.eval()(x)).abs().max())


if __name__ == "__main__":
    main()
