"""Pictures of a finished run: accuracy against eps, and what its adversarial images look like.

accuracy-eps.png    robust accuracy at several eps; its points are kept in sweep.json, so drawing again attacks nothing
examples.png        clean image, adversarial image and amplified difference of a few broken examples
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustgen import engine
from robustgen.attacks.plan_files import disagreements, stored_plan
from robustgen.attacks.plans import Plan, parse_attack, parse_plan
from robustgen.classifier import Classifier, check_classifier
from robustgen.durable import write_json
from robustgen.environment import pick_device
from robustgen.errors import RobustgenError, SpecError
from robustgen.example import ExampleRecord
from robustgen.judge import Judge, strict_float32
from robustgen.oracle import Oracle
from robustgen.precision import SearchModel, choose_form, has_bfloat16
from robustgen.prepare import DEFAULT_BATCH
from robustgen.progress import Progress
from robustgen.runs import OpenedRun, load_run_classifier, open_run
from robustgen.statistics import proportion
from robustgen.threat import ThreatModel
from robustgen.witnesses import read_witnesses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "INK",
    "STYLE",
    "amplification",
    "draw_examples",
    "make_folder",
    "need_matplotlib",
    "plot_run",
    "save_figure",
]

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of the run's own eps
_SHOWN = 8  # examples in the grid
_BLUE, _ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe & Ito: told apart by everybody
INK = 0.55  # share above which a cell of a heat map is so dark that its figure is white
STYLE: Any = {"font.size": 10.0, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150}


def plot_run(
    run: Path, *, out: Path | None, n: int, classifier: str | None, weights: Path | None, data_dir: Path | None,
    device: str, progress: Progress,
) -> list[Path]:  # fmt: skip
    """Draw accuracy-eps.png and examples.png of a finished run.

    Args:
        run: a run folder.
        out: where the pictures go; by default the run folder.
        n: examples behind the curve, the first ones of the run; all of them where the run has fewer.
        classifier: what to load instead of the name in the record; its weights must be those of the run.
        weights: file of weights, as in `evaluate`.
        data_dir: where full data sets lie.
        device: "auto", "cpu", "cuda" or "mps".
        progress: told how the attacks go.

    Returns:
        The pictures drawn; without examples.png when no attack broke anything.

    Raises:
        SpecError, ArtifactError, RecordError: no finished run, or its data or classifier cannot be had.
    """
    need_matplotlib()
    if n < 1:
        raise SpecError(f"--n must be >= 1, got {n}.")
    where = pick_device(device)
    held = open_run(run, data_dir)
    if len(held.threats) > 1:
        raise SpecError(f"{run} evaluates a union of threat models, which has no one eps to draw a curve over.")
    if held.threat.norm == "patch":
        raise SpecError(f"{run} is of {held.threat}, which has no eps to draw a curve over; evaluate several sizes.")
    out = out or run
    if held.record.spec.get("surrogates"):
        progress.note("the attacks of this run never asked its classifier, so no curve over eps is drawn.")
        make_folder(out)
        return draw_examples(held, out, progress)
    sweep = _read_sweep([out, run], held, n)
    model = None
    if sweep is None:
        model = load_run_classifier(
            run, held.record.spec, held.dataset.shape, given=classifier, weights=weights,
            command=f"robustgen plot {run}",
        ).to(where)  # fmt: skip
    make_folder(out)
    if model is not None:
        sweep = _sweep(held, model, held.ids[:n], where, progress)
        _write(lambda path: write_json(path, sweep), out / "sweep.json")
    pictures = [out / "accuracy-eps.png"]
    save_figure(_draw_curve(held, sweep), pictures[0])
    return [*pictures, *draw_examples(held, out, progress)]


def draw_examples(run: OpenedRun, out: Path, progress: Progress) -> list[Path]:
    """examples.png in a folder, or a note where nothing was broken."""
    chosen, images = _choose_examples(run)
    if not chosen:
        progress.note("no attack broke an example of this run, so there is no examples.png.")
        return []
    save_figure(_draw_grid(run, chosen, images), out / "examples.png")
    return [out / "examples.png"]


def need_matplotlib() -> None:
    """Say what to install where it is missing."""
    try:
        import matplotlib.figure  # noqa: F401 -- only asked whether it is there
    except ImportError:
        raise SpecError("robustgen plot needs matplotlib; type: pip install 'robustgen[report]'") from None


def make_folder(folder: Path) -> None:
    """Make the folder for pictures, or say why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--out: {folder} cannot be made ({error.strerror}); name another folder.") from None
    if not os.access(folder, os.W_OK):
        raise SpecError(f"--out: {folder} cannot be written; name another folder.")


# ---------------------------------------------------------------------------------------------- the curve


def _sweep(run: OpenedRun, classifier: Classifier, ids: Sequence[int], device: torch.device, progress: Progress) -> Any:
    """Attack the first examples at every eps; the contents of sweep.json.

    Guarantee: an example broken at some eps counts as broken at every larger one, where its witness is valid too. At
    the run's own eps the run's verdicts are taken: the same plan with the same seed.
    """
    spec = run.record.spec
    x, y = (part.to(device) for part in run.dataset.batch(ids[:64]))
    check_classifier(classifier, x, y)
    form = spec["precision"] if has_bfloat16(device) or "bfloat16" not in spec["precision"] else "auto"
    search, _ = choose_form(classifier, x, y, form)
    with torch.no_grad():
        plan = _plan_of(run, int(classifier(x[:1]).shape[1])).for_all_examples()
    standing = [id_ for id_ in ids if run.examples[id_].clean_prediction == run.examples[id_].label]
    points = []
    for factor in FACTORS:
        eps = factor * run.threat.eps
        if run.threat.norm == "linf" and eps > 1:
            break  # beyond the range of an image
        if factor == 1:
            standing = [id_ for id_ in standing if run.examples[id_].robust]
        elif factor > 0:
            standing = _survivors(run, plan, classifier, search, standing, factor, progress)
        share = proportion(len(standing), len(ids))
        points.append({"factor": factor, "eps": eps, "value": share.value, "low": share.low, "high": share.high})
    return {
        "schema": 1,
        "identity": run.record.identity,
        "n": len(ids),
        "protocol": plan.protocol(int(classifier(x[:1]).shape[1])),
        "points": points,
    }


def _survivors(
    run: OpenedRun, plan: Plan, classifier: Classifier, search: SearchModel, ids: list[int], factor: float,
    progress: Progress,
) -> list[int]:  # fmt: skip
    """Those of the examples that the plan does not break at `factor` times the run's eps."""
    threat = run.threat.scaled(factor)
    judge, oracle = Judge(classifier, threat), Oracle(search)
    device = classifier.mean.device
    standing = list(ids)
    for label, attack in zip(plan.labels(), plan.unconditional(), strict=True):
        if not standing:
            break
        outcomes: list[engine.Outcome] = []

        def finish(outcome: engine.Outcome, outcomes: list[engine.Outcome] = outcomes) -> None:
            outcomes.append(outcome)
            progress.advance(len(outcomes), f"{sum(o.broken for o in outcomes)} broken")

        def fetch(wanted: Sequence[int]) -> tuple[Tensor, Tensor]:
            x, y = run.dataset.batch(wanted)
            return x.to(device), y.to(device)

        progress.start(f"{factor:g} eps {label}", len(standing))
        with strict_float32():
            engine.run(
                attack, oracle, judge, fetch, standing, threat,
                seed=run.record.spec["seed"], batch_size=DEFAULT_BATCH, finish=finish,
            )  # fmt: skip
        broken = {outcome.id for outcome in outcomes if outcome.broken}
        standing = [id_ for id_ in standing if id_ not in broken]
    return standing


def _plan_of(run: OpenedRun, classes: int) -> Plan:
    """The run's own plan: from its copy of the user's file, or as its protocol says it."""
    spec = run.record.spec
    if spec.get("plan_sha256") and not disagreements(run.folder, spec, classes):
        return stored_plan(run.folder, spec["plan"])
    return _plan(spec["protocol"], classes, run.threat)


def _plan(protocol: str, classes: int, threat: ThreatModel) -> Plan:
    """The plan that a protocol string describes; `rapid` where this version cannot say it the same way."""
    match = re.fullmatch(r"(.*)/(\d+): (.*)", protocol)
    try:
        assert match is not None
        plan = Plan(match[1], int(match[2]), tuple(parse_attack(_typed(text)) for text in match[3].split(" > ")))
        if plan.protocol(classes) == protocol:
            return plan
    except (AssertionError, RobustgenError):
        pass
    return parse_plan("rapid", None, threat)


def _typed(text: str) -> str:
    """An attack as a protocol prints it, "pgd(steps=20, loss=dlr:margin)", as it is typed: "pgd:steps=20:loss=dlr"."""
    name, _, values = text.rstrip(")").partition("(")
    settings = [value.partition(":")[0] for value in values.split(", ") if value]
    return ":".join([name, *settings])


def _read_sweep(folders: Sequence[Path], run: OpenedRun, n: int) -> Any | None:
    """The points that an earlier call left for this run and this many examples."""
    for folder in folders:
        try:
            table = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
            known = (table["schema"], table["identity"], table["n"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if known == (1, run.record.identity, min(n, len(run.ids))):
            return table
    return None


def _draw_curve(run: OpenedRun, sweep: Any) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    points, own, spec = sweep["points"], run.record.robust_accuracy, run.record.spec
    eps = [point["eps"] for point in points]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8), layout="constrained")
        axes = figure.add_subplot()
        low, high = [p["low"] for p in points], [p["high"] for p in points]
        axes.fill_between(eps, low, high, color=_BLUE, alpha=0.18, linewidth=0)
        label = f"the first {sweep['n']} examples, with 95 % interval"
        axes.plot(eps, [p["value"] for p in points], "o-", color=_BLUE, markersize=4.5, label=label)
        bar = [[own.value - own.low], [own.high - own.value]]
        axes.errorbar(
            [run.threat.eps], [own.value], bar, fmt="D", color=_ORANGE, capsize=4, markersize=7, zorder=3,
            markeredgecolor="white", label=f"the run: {run.record.n} examples at {run.threat}, {100 * own.value:.1f} %",
        )  # fmt: skip
        axes.set(ylabel="robust accuracy", ylim=(0, 1.02), xlim=(-0.02 * eps[-1], 1.02 * eps[-1]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(color="#dddddd", linewidth=0.6)
        _label_eps(axes, run.threat)
        axes.legend(frameon=False, loc="upper right")
        figure.suptitle(f"{spec['classifier']} on {spec['data']}", fontsize=12)
        figure.supxlabel(_caption(sweep["protocol"]), fontsize=7.5, color=GREY, x=0.02, ha="left")
    return figure


def _label_eps(axes: Axes, threat: ThreatModel) -> None:
    """eps in pixels of [0, 1] below; where it was typed as a fraction, its numerator above."""
    symbol = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}[threat.norm]
    axes.set_xlabel(f"eps ({symbol}, images in [0, 1])")
    _, slash, below = threat.text.partition("/")
    if slash:
        unit = float(below)
        functions: Any = (lambda e: e * unit, lambda e: e / unit)
        above = axes.secondary_xaxis("top", functions=functions)
        above.set_xlabel(f"eps in units of 1/{below.strip()}")


def _caption(protocol: str) -> str:
    text = (
        f"Protocol: {protocol}. An example broken at one eps counts as broken at every larger one: "
        "its adversarial image stays valid there."
    )
    return textwrap.fill(text, 132)


# ---------------------------------------------------------------------------------------------- the grid


def _choose_examples(run: OpenedRun) -> tuple[list[ExampleRecord], Tensor]:
    """Up to eight examples that an attack broke, spread over the classes, and their witnesses (B, C, H, W)."""
    witnesses = dict(read_witnesses(run.folder))
    by_class: dict[int, list[ExampleRecord]] = defaultdict(list)
    for id_ in run.ids:
        example = run.examples[id_]
        if id_ in witnesses:
            by_class[example.label].append(example)
    turns = chain.from_iterable(zip_longest(*(by_class[label] for label in sorted(by_class))))
    chosen = sorted([example for example in turns if example][:_SHOWN], key=lambda e: (e.label, e.id))
    return chosen, torch.stack([witnesses[e.id] for e in chosen]) if chosen else torch.empty(0)


def _draw_grid(run: OpenedRun, chosen: Sequence[ExampleRecord], adversarial: Tensor) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    clean, _ = run.dataset.batch([example.id for example in chosen])
    difference = adversarial - clean
    factor = amplification(float(difference.abs().max()))
    rows = (clean, adversarial, (0.5 + factor * difference).clamp(0, 1))
    grey = clean.shape[1] == 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.45 * max(len(chosen), 4) + 0.4, 5.6), layout="constrained")
        grid = figure.subplots(3, len(chosen), squeeze=False)
        for row, images in enumerate(rows):
            cmap = ("RdBu_r" if row == 2 else "gray") if grey else None
            for axes, image in zip(grid[row], images, strict=True):
                pixels = image.permute(1, 2, 0).squeeze(2) if grey else image.permute(1, 2, 0)
                axes.imshow(pixels.numpy(), cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        names = ("clean", "adversarial", f"difference × {factor:g}")
        for axes, name in zip(grid[:, 0], names, strict=True):
            axes.set_ylabel(name, fontsize=11)
        for column, example in enumerate(chosen):
            grid[0][column].set_title(_name(run, example.label), fontsize=9)
            grid[1][column].set_title(f"→ {_name(run, example.prediction)}", fontsize=9, color=_ORANGE)
            grid[2][column].set_xlabel(f"id {example.id}\n{example.broken_by}", fontsize=8, color=GREY)
        spec = run.record.spec
        figure.suptitle(f"{spec['classifier']} on {spec['data']}, {spec['threat']}", fontsize=12)
        zero = "white: unchanged, red: brighter, blue: darker" if grey else "grey: unchanged"
        figure.supxlabel(f"The difference is multiplied by {factor:g} ({zero}).", fontsize=8, color=GREY)
    return figure


def amplification(largest: float) -> float:
    """What brings the largest change of a pixel to half the range, rounded down to two digits; at least 1."""
    if largest <= 0:
        return 1.0
    wanted = 0.5 / largest
    return max(1.0, float(f"{wanted:.2g}") if wanted < 10 else float(int(wanted)))


def _name(run: OpenedRun, label: int | None) -> str:
    names = run.dataset.class_names
    text = names[label] if label is not None and label < len(names) else str(label)
    return textwrap.shorten(text.replace("_", " "), 18, placeholder=" …")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, or nothing at all."""
    draft = path.with_name(path.name + ".tmp")

    def write(target: Path) -> None:
        figure.savefig(draft, format="png", bbox_inches="tight", pad_inches=0.12)
        draft.replace(target)

    _write(write, path)


def _write(action: Any, path: Path) -> None:
    try:
        action(path)
    except OSError as error:
        raise SpecError(f"{path} cannot be written ({error.strerror}); name another folder with --out.") from None
