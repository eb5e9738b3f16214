"""`edm-cifar10` for a few minutes: that it runs, learns, and goes on after a kill; and what the whole of it would take.

    python -m robustgen.benchmarks.edm_cifar10 [--steps 30]

Network, loss, augmentation and optimizer are the recipe's. Batch, warm-up and half-life are smaller (`CHANGES`): a few
minutes hold only a few steps of 512 images. The training is a process of its own, ended by SIGKILL after its first
checkpoint; the same command goes on. The estimate for one H100 counts the operations of the recipe's 200 M images.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from robustgen.benchmarks.harness import store
from robustgen.generator.overview import overview
from robustgen.generator.recipe import load_generator_recipe
from robustgen.reproduce.costs import H100_FLOPS, to_toml

BATCH = 32
CHANGES: dict[str, dict[str, Any]] = {
    "data": {"validation": 64},
    "training": {
        "batch_size": BATCH,
        "warmup": 10 * BATCH,
        "ema_half_life": 1_000,
        "grid_seconds": 1e6,
        "metrics_images": 5 * BATCH,
    },
}
PASSES = 3  # forward and backward, in forward passes


def main() -> None:
    """Run, kill, go on, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    recipe = load_generator_recipe("edm-cifar10")
    content = recipe.to_dict()
    for part, changes in CHANGES.items():
        content[part] |= changes
    content["training"]["images"] = given.steps * BATCH
    with TemporaryDirectory() as name:
        file, out = Path(name) / "recipe.toml", Path(name) / "out"
        file.write_text(to_toml(content), encoding="utf-8")
        _train_and_kill(file, out)
        log = (out / "train.log").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (row,) = overview(["edm-cifar10"], "cpu", "auto")
    flops = 1e6 * row["mflops"] * PASSES * recipe.training.images
    result: dict[str, Any] = {
        "what": f"edm-cifar10 for {given.steps} steps of {BATCH} images",
        "changes": CHANGES,
        "weights": row["weights"],
        "metrics": metrics,
        "log": log,
        "estimate": {"flops": flops, "h100_hours": flops / H100_FLOPS / 3600, "at_flops_per_second": H100_FLOPS},
    }
    print("\n".join(log))
    print(result["estimate"])
    print(store("edm_cifar10", result))


def _train_and_kill(recipe: Path, out: Path) -> None:
    """Start, SIGKILL some steps after the first checkpoint, and go on to the end."""
    command = [sys.executable, "-m", "robustgen", "generator", "train", str(recipe), "--out", str(out)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 -- our own command
    while not (out / "checkpoint.pt").exists():
        time.sleep(1)
        if first.poll() is not None:
            sys.exit(f"the training ended with status {first.returncode} before its first checkpoint; run: {command}")
    time.sleep(20)
    first.send_signal(signal.SIGKILL)
    first.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # noqa: S603 -- our own command


if __name__ == "__main__":
    main()
