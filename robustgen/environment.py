"""Where a run ran: versions, hardware, threads; recorded beside the figures."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from robustgen import __version__
from robustgen.errors import SpecError

__all__ = ["describe_environment", "pick_device", "tune_process"]


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one, else the CPU.

    Raises:
        SpecError: an unknown device, or one that this machine has not.
    """
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise SpecError(f"--device must be auto, cpu, cuda or mps, got '{name}'.")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if present["cuda"] else "cpu")
    if not present[name]:
        raise SpecError(f"--device {name}: this machine has none; type --device auto.")
    return torch.device(name)


def tune_process() -> None:
    """Settings of a process that is all ours, such as a command line: threads and memory; called before any work."""
    _use_available_cores()
    _keep_freed_memory()


def _use_available_cores() -> None:
    """One torch thread a core that this process may use; OMP_NUM_THREADS, where set, is respected."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(cores, _cgroup_cores())))


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: by default it hands large blocks back, and each query faults them in again.

    On a WideResNet in batches of 250 that was up to half of the time of a gradient (`mallopt(3)`: M_MMAP_THRESHOLD is
    -3, M_TRIM_THRESHOLD -1). MALLOC_ variables of the user's own are respected; other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**30)
    libc.mallopt(-1, 2**31 - 1)


def _cgroup_cores() -> int:
    """Cores that a container may use, by cgroup v2; a large number where nothing limits it."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return 10_000 if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return 10_000


@lru_cache(maxsize=1)
def describe_environment() -> dict[str, Any]:
    """Versions, processor, threads and git commit, ready for JSON."""
    return {
        "versions": {name: _version(name) for name in ("robustgen", "torch", "torchvision", "numpy", "safetensors")},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "tf32": False,
        "cudnn_benchmark": False,
        "git": _git_commit(),
    }


def _version(package: str) -> str | None:
    if package == "robustgen":
        return __version__  # also in a bare checkout, which is not installed
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Commit of the checkout this package runs from, with "+" when files differ from it; None for an installed one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 -- fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
