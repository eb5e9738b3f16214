"""`edm-cifar10` for a few minutes: that it runs, learns, and goes on after a kill; and what the whole of it would take.

    python -m robustgen.benchmarks.edm_cifar10 [--minutes 3]

Network, loss, augmentation and optimizer are the recipe's. Batch and warm-up are smaller (64 images, 640 images), or
minutes would not hold a step of the schedule. The training is a process of its own, ended by SIGKILL in the middle, and
the same command goes on. The estimate for one H100 counts the multiplications of the recipe's 200 M images.
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

CHANGES = {"batch_size": 64, "warmup": 640, "ema_half_life": 1_000, "grid_seconds": 1e6}
PASSES = 3  # forward and backward, in forward passes


def main() -> None:
    """Run, kill, go on, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3, help="before the kill, and after it")
    given = parser.parse_args()
    recipe = load_generator_recipe("edm-cifar10")
    content = recipe.to_dict()
    content["training"] |= CHANGES
    with TemporaryDirectory() as name:
        file, out = Path(name) / "recipe.toml", Path(name) / "out"
        file.write_text(to_toml(content), encoding="utf-8")
        command = [sys.executable, "-m", "robustgen", "generator", "train", str(file), "--out", str(out)]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 -- our own command
        time.sleep(60 * given.minutes)
        first.send_signal(signal.SIGKILL)
        first.wait()
        again = [*command, "--budget", f"{60 * given.minutes:.0f}s"]
        subprocess.run(again, check=True, stderr=subprocess.DEVNULL)  # noqa: S603
        log = (out / "train.log").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (row,) = overview(["edm-cifar10"], "cpu", "auto")
    flops = 2e6 * row["mflops"] * PASSES * recipe.training.images
    result: dict[str, Any] = {
        "minutes": 2 * given.minutes,
        "changes": CHANGES,
        "weights": row["weights"],
        "metrics": metrics,
        "log": log,
        "estimate": {"flops": flops, "h100_hours": flops / H100_FLOPS / 3600, "at_flops_per_second": H100_FLOPS},
    }
    print("\n".join(log))
    print(result["estimate"])
    print(store("edm_cifar10", result))


if __name__ == "__main__":
    main()
