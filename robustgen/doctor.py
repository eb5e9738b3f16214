"""What `robustgen doctor` looks at: versions, device, speed, memory, data, weights, and packages that do not agree."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from robustgen.cards import Card, bundled_cards
from robustgen.classifiers import load_classifier
from robustgen.data import DATA, find_data, load_data
from robustgen.dataset import data_root
from robustgen.environment import describe_environment, pick_device
from robustgen.precision import choose_form, has_bfloat16
from robustgen.robustbench_zoo import models_folder, torchattacks_overwrites
from robustgen.usercode import first_line
from robustgen.weights import read_weights

__all__ = ["Finding", "examine"]

Level = Literal["ok", "note", "wrong"]
_GIB = 2**30
_LITTLE = 2 * _GIB  # memory or disk below which a run may not fit
_EXTRAS = {
    "matplotlib": "pip install 'robustgen[report]' for pictures",
    "robustbench": "pip install 'robustgen[robustbench]' for the models of RobustBench",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was seen, whether it is well, and what to do if not."""

    name: str
    value: str
    level: Level = "ok"
    advice: str = ""


def examine(data_dir: Path | None = None) -> list[Finding]:
    """Look at everything; nothing is downloaded, written or changed.

    Args:
        data_dir: where full data sets lie, as in `robustgen.evaluate`.

    Returns:
        What was seen; a check that itself fails is "wrong".
    """
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _versions, _device, _threads, _precision, _memory, lambda: _data(data_dir), _weights, _conflicts,
    )  # fmt: skip
    return [finding for check in checks for finding in _guarded(check)]


def _guarded(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 -- a doctor says what ails, whatever it is
        name = getattr(check, "__name__", "check").strip("_<>")
        told = f"{type(error).__name__}: {first_line(error)}"
        yield Finding(name=name, value=told, level="wrong", advice="install robustgen again: pip install -U robustgen")


def _versions() -> Iterator[Finding]:
    held = describe_environment()
    shown = ", ".join(f"{name} {number}" for name, number in held["versions"].items())
    yield Finding(name="versions", value=f"{shown}, Python {held['python']}, {held['system']}")
    for name, advice in _EXTRAS.items():
        there = _version(name)
        yield Finding(name=name, value=there or "not installed", level="ok" if there else "note", advice=advice)


def _device() -> Iterator[Finding]:
    chosen = pick_device("auto")
    if chosen.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding(name="device", value=f"cuda: {name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
        return
    hidden = shutil.which("nvidia-smi") is not None
    yield Finding(
        name="device", value=f"cpu: {describe_environment()['processor']}", level="note" if hidden else "ok",
        advice="nvidia-smi is there, but this torch sees no GPU: install one built for CUDA" if hidden else "",
    )  # fmt: skip


def _threads() -> Iterator[Finding]:
    given = os.environ.get("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = f"OMP_NUM_THREADS={given} is respected; unset it to use one thread a core" if given is not None else ""
    yield Finding(
        name="threads", value=f"{torch.get_num_threads()} for {cores} cores", level="note" if advice else "ok",
        advice=advice,
    )  # fmt: skip


def _precision() -> Iterator[Finding]:
    device = pick_device("auto")
    classifier = load_classifier("fmnist-at").to(device)
    x, y = (part.to(device) for part in load_data("fmnist-test-1k").batch(range(32)))
    begun = time.perf_counter()
    model, notes = choose_form(classifier, x, y)
    seconds = time.perf_counter() - begun
    why = "this hardware multiplies bfloat16" if has_bfloat16(device) else "this hardware only emulates bfloat16"
    yield Finding(
        name="precision", value=f"auto takes {model.form} for fmnist-at: timed in {seconds:.1f} s; {why}",
        advice=" ".join(notes),
    )  # fmt: skip


def _memory() -> Iterator[Finding]:
    free, limit = _free_memory()
    text = f"{free / _GIB:.1f} GiB free" + (f", container limit {limit / _GIB:.1f} GiB" if limit else "")
    little = min(free, limit or free) < _LITTLE
    advice = "type a smaller --batch-size, such as 50" if little else ""
    yield Finding(name="memory", value=text, level="note" if little else "ok", advice=advice)
    left = shutil.disk_usage(Path.cwd()).free
    yield Finding(
        name="disk", value=f"{left / _GIB:.1f} GiB free in the current folder",
        level="note" if left < _LITTLE else "ok", advice="runs go below the current folder; name another with --out",
    )  # fmt: skip


def _free_memory() -> tuple[int, int | None]:
    """Bytes that are free, and the limit of the container, where there is one."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        pages = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return pages, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return pages, None


def _data(data_dir: Path | None) -> Iterator[Finding]:
    root = data_root(data_dir)
    for name in DATA:
        if ":" in name:
            continue
        place = find_data(name, data_dir)
        advice = "" if place else "it is downloaded when it is first asked for; or name its folder with --data-dir"
        yield Finding(
            name=f"data {name}", value=str(place or f"not in {root}"), level="ok" if place else "note", advice=advice
        )


def _weights() -> Iterator[Finding]:
    cards = {name: (path, Card.load(path)) for name, path in bundled_cards().items()}
    checked = {name: (path.parent / str(card.weights), card.sha256) for name, (path, card) in cards.items()}
    bad = [name for name, (file, digest) in checked.items() if digest and read_weights(file).sha256 != digest]
    yield Finding(
        name="weights", value=f"{len(cards)} bundled classifiers" + (f", damaged: {', '.join(bad)}" if bad else ""),
        level="wrong" if bad else "ok", advice="install robustgen again: pip install --force-reinstall robustgen",
    )  # fmt: skip
    folder = models_folder()
    found = sorted(path.name for path in folder.rglob("*.pt")) if folder.is_dir() else []
    yield Finding(
        name="robustbench weights", value=f"{len(found)} in {folder.resolve()}", level="ok" if found else "note",
        advice="they are downloaded when a model is first asked for; $ROBUSTGEN_MODELS names another folder",
    )  # fmt: skip


def _conflicts() -> Iterator[Finding]:
    zoo, setuptools = _version("robustbench"), _version("setuptools")
    if torchattacks_overwrites():
        yield Finding(
            name="torchattacks", level="wrong" if zoo else "note",
            value=f"{_version('torchattacks')} brings an old robustbench of its own under the same name",
            advice="keep the two apart: pip uninstall torchattacks robustbench, then install the one you need",
        )  # fmt: skip
    if zoo and not (_version("pyautoattack") or _version("autoattack")):
        yield Finding(
            name="autoattack", value="robustbench needs pyautoattack, which is not installed", level="wrong",
            advice="pip install pyautoattack",
        )  # fmt: skip
    if zoo and setuptools and int(setuptools.partition(".")[0]) >= 81:
        yield Finding(
            name="setuptools", value=f"{setuptools} has no pkg_resources, which robustbench imports", level="note",
            advice="robustgen lends it one; scripts of your own need pip install 'setuptools<81'",
        )  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
