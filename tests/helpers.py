"""What several test files share and no fixture can be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("attacks", "benchmarks", "leaderboard", "purify")  # folders installed as robustgen.<name>
LEFT_BEHIND = {
    "__pycache__",
    ".git",
    ".mypy_cache",
    ".nox",
    ".pytest_cache",
    ".ruff_cache",
    "build",
    "dist",
    "runs",
    "trained",
}


class Linear(nn.Module):
    """Logits W x + b on flattened images, the classifier whose optimal perturbations are known in closed form.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes K.
        seed: fixes `weight` (K, C*H*W), rows of unit L2 norm, and `bias` (K,), all float32.
    """

    def __init__(self, shape: Sequence[int], classes: int, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        size = int(torch.tensor(shape).prod())
        weight = torch.randn(classes, size, generator=g)
        self.weight = nn.Parameter(weight / weight.norm(dim=1, keepdim=True), requires_grad=False)
        # Every class scores 0 on the grey image, so that random images spread over the classes.
        noise = 0.01 * torch.randn(classes, generator=g)
        self.bias = nn.Parameter(noise - 0.5 * self.weight.sum(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] -> (B, K) logits."""
        return x.flatten(1) @ self.weight.T + self.bias

    def distance(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """Distance of (B, C, H, W) images to the nearest other class, ignoring the limits of [0, 1].

        Args:
            x: images.
            y: (B,) labels, the predicted ones.
            norm: "linf", "l2" or "l1", the norm of the perturbation.

        Returns:
            (B,) distances in pixels; 0 or less where `y` is not predicted. Between two classes it is the margin over
            the dual norm of the difference of their weights.
        """
        dual = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
        logits = self(x)
        margins = logits.gather(1, y[:, None]) - logits  # (B, K)
        gaps = torch.linalg.vector_norm(self.weight[y][:, None] - self.weight, ord=dual, dim=2)  # (B, K)
        distances = margins / gaps.clamp_min(1e-12)
        return distances.scatter(1, y[:, None], torch.inf).amin(1)


class Recorder(nn.Module):
    """Passes images on to a model and keeps them in `seen`: the points that a reference implementation queried."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits: Tensor = self.model(x)
        return logits


def make_linear(shape: Sequence[int] = (1, 8, 8), classes: int = 4, seed: int = 0) -> Linear:
    """A `Linear` in eval mode."""
    linear = Linear(shape, classes, seed)
    return linear.eval()


def make_convnet(channels: int = 1, classes: int = 4, seed: int = 0) -> nn.Module:
    """A random conv net for (B, channels, H, W) images of any size: with batch-norm, frozen, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, classes),
        )
        norm = net[1]
        assert isinstance(norm, nn.BatchNorm2d)
        # Running statistics as after training: neither zero nor one, so that folding them wrongly shows.
        norm.running_mean = 0.1 * torch.randn(8)
        norm.running_var = 0.5 + torch.rand(8)
    return net.eval().requires_grad_(requires_grad=False)


def make_images(model: nn.Module, n: int = 8, shape: Sequence[int] = (1, 8, 8), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) float32, uniform in [0, 1], and what `model` predicts for them, (n,) int64."""
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = model(x).argmax(1)
    return x, y


@contextmanager
def assert_global_rng_untouched() -> Iterator[None]:
    """Fail when the block draws from torch's global generator or seeds it."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global torch generator was used"


def repository_files() -> list[Path]:
    """What git would ship, relative to the root: tracked files and new ones that are not ignored.

    Outside a git checkout, for instance in an unpacked archive, everything but what tools leave behind.
    """
    if (ROOT / ".git").exists():
        git = shutil.which("git")
        assert git is not None, "a git checkout is tested with git on the PATH"
        command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted(Path(name) for name in listed if name and (ROOT / name).is_file())
    found: list[Path] = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [name for name in below if name not in LEFT_BEHIND and not re.search(r"^\.venv|\.egg-info$", name)]
        found += [(Path(folder) / name).relative_to(ROOT) for name in names]
    return sorted(found)


def copy_repository(folder: Path) -> None:
    """Copy what git would ship into `folder`, which is made."""
    for path in repository_files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target)


def write_linear_task(folder: Path, count: int) -> None:
    """net.py with `make` and `other`; data.npz with so many images, of which `make` gets all but two right."""
    (folder / "net.py").write_text(
        "from tests.helpers import make_linear\n"
        "def make(): return make_linear((1, 8, 8))\ndef other(): return make_linear((1, 8, 8), seed=1)\n"
    )
    images = np.random.default_rng(0).integers(84, 172, (count, 8, 8, 1), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = make_linear((1, 8, 8))(x).argmax(1).numpy()
    labels[:2] = (labels[:2] + 1) % 4
    np.savez(folder / "data.npz", image=images, label=labels)
