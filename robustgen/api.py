"""The two functions for use from Python: `robustgen.evaluate` and `robustgen.attack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robustgen import engine
from robustgen.attacks.base import Attack, sees
from robustgen.attacks.nearest import check_goal
from robustgen.attacks.plans import Plan, parse_attack
from robustgen.class_images import starts_in_class
from robustgen.classifier import check_classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.errors import SpecError
from robustgen.goals import UNTARGETED, Goal, check_goal_of
from robustgen.jobs import run_job
from robustgen.judge import Judge, strict_float32
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm, SearchModel
from robustgen.prepare import DEFAULT_BATCH, prepare
from robustgen.progress import Progress, Silent
from robustgen.record import RunRecord
from robustgen.registry import ATTACKS
from robustgen.request import Request
from robustgen.threat import ThreatModel

__all__ = ["attack", "evaluate"]


def evaluate(
    classifier: str | nn.Module = "fmnist-at",
    data: str | tuple[Tensor, Tensor] | None = None,
    threat: str | ThreatModel | None = None,
    *,
    plan: str | None = None,
    attacks: str | None = None,
    goal: str | None = None,
    queries: int | None = None,
    surrogates: str | None = None,
    account: str | None = None,
    total_queries: int | None = None,
    total_seconds: float | None = None,
    purify: str | None = None,
    gradient: str = "full",
    eot: int | None = None,
    report: str = "accuracy",
    n: int | None = None,
    ids: str | Sequence[int] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    weights: str | Path | None = None,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Measure clean and robust accuracy, each with its interval, and leave a record that can be checked.

    Args:
        classifier: a name (`robustgen list classifiers`), a card file, "torchvision:NAME", "robustbench:NAME",
            "python:FILE.py:FUNCTION", "http://HOST:PORT" or a module: (B, C, H, W) float32 in [0, 1] -> logits (B, K).
        data: a name (`robustgen list data`), "folder:PATH", "npz:PATH" or images (N, C, H, W) and labels (N,); by
            default what the classifier's card names, or the embedded images.
        threat: "linf:8/255", "l2:0.5", "l1:12" or "patch:6x6"; by default what classifier or data are known for.
        plan: a name (`robustgen list plans`) or a TOML file; by default "rapid", "adaptive" behind a purifier,
            "patches" under a patch.
        attacks: instead of a plan, attacks with commas, such as "pgd:steps=20,square".
        goal: what counts as a success: "targeted:3", "least-likely", "next", "all" (every class in turn), or any wrong
            class, which is the default where the plan does not say otherwise.
        queries: the most images that each attack may send for one example; every attack must see answers only, and is
            run on all examples. The plan is "queries" then, where none is named.
        surrogates: names with commas: the attacks run on the mean of their logits, and the classifier only judges
            where each attack ends. The plan is "transfer" then, where none is named.
        account, total_queries, total_seconds: of a classifier at an address: names that it is asked under, the next one
            where one is closed; the most images and seconds of this call.
        purify: a purifier put in front, such as "diffpure:t=0.1,steps=20" (`robustgen list purifiers`).
        gradient: how gradients cross it where the plan does not say: "full", "surrogate", "adjoint", "bpda", "none".
        eot: draws behind each gradient of a random defence, where the plan does not say.
        report: "accuracy" inside the threat model's eps; "distance" under a threat model without one, such as "l2",
            where minimum-norm attacks look for the nearest adversarial image of each example.
        n: the first n examples; all by default.
        ids: these examples: "0-99,205", a file of ids, or integers.
        seed: of every random draw.
        out: run folder; by default runs/<data>-<classifier>-<identity>. The same call goes on with an unfinished one.
        batch_size: examples attacked at once; changes no figure.
        device: "auto", "cpu", "cuda", "mps".
        precision: "auto" searches in the fastest form that the processor has, "float32" in the plain one; or a form as
            a record names it, such as "float32+channels_last+folded".
        weights: a file (.safetensors, or .pt without code) instead of the classifier's own.
        data_dir: where full data sets lie.
        progress: told how the work goes; silent by default.

    Raises:
        SpecError, ArtifactError, RecordError: the request is wrong; says what to change.
    """
    request = Request(
        classifier=classifier, data=data, threat=threat, plan=plan, attacks=attacks, n=n, ids=ids, seed=seed,
        precision=precision, weights=weights, data_dir=data_dir, purify=purify, gradient=gradient, eot=eot,
        report=report, goal=goal, queries=queries, surrogates=surrogates,
        account=account, total_queries=total_queries, total_seconds=total_seconds,
    )  # fmt: skip
    job = prepare(request, device=device, batch_size=batch_size, out=None if out is None else Path(out))
    return run_job(job, progress or Silent())


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: str | ThreatModel,
    attack: str | Attack = "apgd-ce",
    *,
    goal: str | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> Tensor:
    """Run one attack to the end on a batch of images.

    Args:
        model: maps (B, C, H, W) float32 in [0, 1] to logits (B, K), in eval mode; it is not changed.
        x: (N, C, H, W) in [0, 1].
        y: (N,) int64 labels.
        threat: what the adversary may do, such as "linf:8/255"; a norm alone, such as "l2", for the nearest adversarial
            image that a minimum-norm attack finds.
        attack: a name with parameters, such as "pgd:steps=20", or an attack object.
        goal: the class that each image must become: "targeted:3", "least-likely" or "next"; any wrong one by default.
        seed: of every random draw.
        batch_size: rows held at once; changes no result.

    Returns:
        (N, C, H, W) float32 on the device of x: an adversarial image where one was found, the clean image elsewhere.

    Raises:
        SpecError: the images, labels, model or attack are not what they should be.
    """
    if not isinstance(model, nn.Module):
        raise SpecError(f"model must be a torch.nn.Module, got a {type(model).__name__}.")
    if batch_size < 1:
        raise SpecError(f"batch_size must be >= 1, got {batch_size}.")
    limits = ThreatModel.parse(threat, bare=True)
    chosen = parse_attack(attack) if isinstance(attack, str) else attack
    check_goal(Plan("attack", 1, (chosen,)), limits)
    aim = _goal(goal, chosen)
    dataset = load_data((x, y))
    limits.check_images(dataset.shape)
    classifier = load_classifier(model).to(x.device)
    images, labels = (part.to(x.device) for part in dataset.batch(range(len(dataset))))
    check_classifier(classifier, images[:64], labels)
    adversarial = images.clone()

    def finish(outcome: engine.Outcome) -> None:
        if outcome.x_adv is not None:
            adversarial[outcome.id] = outcome.x_adv.to(adversarial)

    def fetch(ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        return images[list(ids)], labels[list(ids)]

    judge = Judge(classifier, limits)
    with strict_float32():
        seen = [judge.see(part) for part in images.split(batch_size)]
        predictions, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
        aim.check(logits.shape[1])
        targets = aim.targets(labels, logits)
        due = predictions == labels if targets is None else (predictions == labels) & (targets != labels)
        aims = None if targets is None or sees(chosen) != "labels" else dict(enumerate(targets.tolist()))
        engine.run(
            chosen, Oracle(SearchModel(classifier, SearchForm())), judge, fetch, due.nonzero().flatten().tolist(),
            limits, seed=seed, batch_size=batch_size, finish=finish,
            goals=None if targets is None else lambda ids: targets[list(ids)],
            starts=None if aims is None else starts_in_class(fetch, dataset.labels, judge, aims, seed=seed),
        )  # fmt: skip
    return adversarial


def _goal(text: str | None, attack: Attack) -> Goal:
    """The goal of one attack on images in memory."""
    goal = UNTARGETED if text is None else Goal.parse(text)
    if goal.kind == "all":
        raise SpecError("goal: attack() makes one image for each, so 'all' is none; loop over targeted:CLASS.")
    if goal.targeted:
        check_goal_of([(ATTACKS.name_of(attack), attack)], goal)
    return goal
