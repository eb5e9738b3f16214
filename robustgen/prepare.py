"""From a request to a job: everything is loaded and checked here, before the first second of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path

import torch
from torch import Tensor, nn

from robustgen.adversarials import Adversarials
from robustgen.attacks.nearest import check_goal, goal_threats
from robustgen.attacks.plans import Plan, attack_of, parse_plan
from robustgen.attacks.queries import limit, needs_float32
from robustgen.attacks.replay import Replay
from robustgen.attacks.transfer import check_surrogate_plan
from robustgen.cards import Card, bundled_cards
from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data, parse_ids
from robustgen.dataset import Dataset
from robustgen.defended import Defended, crossing_of, defence_flags, defend, has_generator, split_name
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.goals import UNTARGETED, Goal, check_goal_of, check_labels
from robustgen.health import is_stochastic
from robustgen.journal import saved_spec
from robustgen.oracle import Oracle
from robustgen.own_plans import with_stored_plan
from robustgen.precision import SearchForm, SearchModel, choose_form
from robustgen.ranks import Ranks
from robustgen.registry import ATTACKS
from robustgen.remote import Remote, StandIn, check_plan, load_asked, notes_of, probe
from robustgen.request import Request, check_request, is_address
from robustgen.rng import ExampleRng
from robustgen.robustbench_zoo import ROBUSTBENCH, ZooName
from robustgen.spec import RunSpec, compact_ids
from robustgen.stages import Stage, stages_of
from robustgen.surrogates import Ensemble, load_surrogates
from robustgen.threat import ThreatModel

__all__ = ["DEFAULT_BATCH", "Job", "default_data", "prepare", "slug"]

DEFAULT_BATCH = 250
_BATCH_BEHIND_A_GENERATOR = 64  # on processors, where the graphs of a chain of larger batches would not be kept
_PROBE_ROWS = 64
_EMBEDDED = "fmnist-test-1k"
_THREATS = {
    "fmnist-test-1k": "linf:0.1", "fashion-mnist": "linf:0.1", "cifar10": "linf:8/255", "cifar100": "linf:8/255",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request that has been checked and can run."""

    spec: RunSpec
    classifier: Classifier
    search: SearchModel
    dataset: Dataset
    ids: tuple[int, ...]
    threats: tuple[ThreatModel, ...]
    plan: Plan
    goal: Goal
    classes: int
    stages: tuple[Stage, ...]
    growth: tuple[Stage, ...]
    escalation: tuple[Stage, ...]
    device: torch.device
    batch_size: int
    folder: Path
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    asides: tuple[str, ...] = ()  # for the user, not for the record

    def after(self, stage: Stage) -> tuple[Stage, ...]:
        """An attack of the plan and all that can come after it."""
        return (*self.stages[self.stages.index(stage) :], *self.growth, *self.escalation)

    @property
    def remote(self) -> bool:
        """Whether a server answers for the classifier."""
        return isinstance(self.classifier, Remote)

    @property
    def on_surrogates(self) -> bool:
        """Whether other classifiers are attacked in place of the one that judges."""
        return bool(self.spec.surrogates)


def prepare(
    request: Request, *, device: str = "auto", batch_size: int | None = None, out: Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 -- frozen
) -> Job:  # fmt: skip
    """Load and check everything that a run needs; of several ranks the first chooses the search form for all.

    Raises:
        SpecError, ArtifactError: the request cannot be run as asked; nothing has been written.
    """
    check_request(request, batch_size)
    where = pick_device(device)
    request, own_plan = with_stored_plan(request, out)
    threats = () if request.threat is None else goal_threats(request.threat, request.report)
    # names and parameters, before any file
    first = threats[0] if threats else _any_threat(request)
    goal = _goal_of(request, _plan_of(request, first, known=bool(threats)))
    data_dir = None if request.data_dir is None else Path(request.data_dir)
    dataset = load_data(default_data(request.classifier) if request.data is None else request.data, data_dir=data_dir)
    ids = _choose_ids(request, dataset)
    classifier = _load(request, dataset).to(where)
    threats = threats or goal_threats(_default_threat(classifier, dataset, request.report), request.report)
    for threat in threats:
        threat.check_images(dataset.shape)
    plans = [_plan_for(request, classifier, threat) for threat in threats]
    stages, growth, escalation = stages_of(plans, threats, elsewhere=request.surrogates is not None)
    x, y = (part.to(where) for part in dataset.batch(ids[:_PROBE_ROWS]))
    labels = torch.as_tensor(dataset.labels[list(ids)])
    devices = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # a stochastic classifier draws from it
        flags, asked = _look(request, classifier, x, labels, plans)
        for stage in (*stages, *growth, *escalation):  # one example each: an attack may refuse a norm
            stage.attack.init(Oracle(asked), x[:1], y[:1], stage.threat, ExampleRng.of(request.seed, ids[:1]))
        classes = _count_classes(asked, x)
        _refuse_mismatch(asked, x, plans[0], threats[0])
        surrogates = None if request.surrogates is None else load_surrogates(request.surrogates, classifier, x)
    goal.check(classes)
    told = check_labels(goal, labels.tolist())
    spec = _spec(request, classifier, dataset, ids, threats, plans, classes, goal, surrogates)
    stem = f"{slug(dataset.name)}-{slug(classifier.card.name)}"
    recorded = _recorded_precision(spec, out, stem) if request.precision == "auto" else None
    ranks.agree(spec)
    exact = not threats[0].bounded or any(map(needs_float32, plans))
    searched = surrogates or classifier
    asked_form, walks = recorded or request.precision, _walks(threats[0])
    search, notes = _shared_form(searched, x, y, asked_form, ranks, exact=exact, walks=walks)
    notes += notes_of(classifier)
    spec = replace(spec, precision=str(search.form))
    return Job(
        spec=spec, classifier=classifier, search=search, dataset=dataset, ids=tuple(ids), threats=threats,
        plan=plans[0], goal=goal, classes=classes, stages=stages, growth=growth, escalation=escalation,
        device=where, batch_size=batch_size or _default_batch(classifier, where),
        folder=out or Path("runs") / f"{stem}-{spec.identity()[:8]}",
        flags=(*flags, *defence_flags(classifier, plans[0])), notes=(*notes, *told), asides=tuple(own_plan),
    )  # fmt: skip


def _default_batch(classifier: Classifier, device: torch.device) -> int:
    return _BATCH_BEHIND_A_GENERATOR if device.type == "cpu" and has_generator(classifier) else DEFAULT_BATCH


def _look(
    request: Request, classifier: Classifier, x: Tensor, labels: Tensor, plans: Sequence[Plan]
) -> tuple[list[str], nn.Module]:
    """Flags, or a refusal; and what attacks are tried on, which is a stand-in where images are paid for."""
    if not isinstance(classifier, Remote):
        return check_classifier(classifier, x, labels), classifier
    for plan in plans if request.surrogates is None else ():
        check_plan(classifier, plan)
    return probe(classifier, x, labels.tolist()), StandIn(classifier.client.served.classes)


def _spec(
    request: Request, classifier: Classifier, dataset: Dataset, ids: Sequence[int], threats: Sequence[ThreatModel],
    plans: Sequence[Plan], classes: int, goal: Goal, surrogates: Ensemble | None,
) -> RunSpec:  # fmt: skip
    """The specification, with the precision as asked."""
    return RunSpec(
        classifier=classifier.card.name,
        weights_sha256=classifier.weights_sha256,
        data=dataset.name,
        data_sha256=dataset.digest(ids),
        ids=compact_ids(ids),
        threat=",".join(str(threat) for threat in threats),
        plan=plans[0].name,
        protocol=_protocol(plans, threats, classes)
        + crossing_of(classifier, plans[0])
        + ("" if surrogates is None else surrogates.protocol)
        + goal.protocol,
        goal=str(goal),
        plan_sha256=plans[0].sha256,
        surrogates=() if surrogates is None else surrogates.identity,
        seed=request.seed,
        precision=request.precision,
    )


def _refuse_mismatch(classifier: nn.Module, x: Tensor, plan: Plan, threat: ThreatModel) -> None:
    """Distances need a classifier that answers alike each time; draws to average need one that does not."""
    if threat.bounded and plan.eot == 1:
        return
    stochastic = is_stochastic(classifier, x)
    if stochastic and not threat.bounded:
        raise SpecError(
            "--report distance needs a classifier that gives the same answer each time, and this one does not; "
            "type --report accuracy and a threat model with an eps."
        )
    if plan.eot > 1 and not stochastic:
        raise SpecError(
            f"--plan {plan.name} averages {plan.eot} draws of a stochastic classifier, but this one gives "
            "the same answer each time; type --plan standard for the same attacks and more."
        )


def _load(request: Request, dataset: Dataset) -> Classifier:
    """The classifier, behind its purifier where one is asked for."""
    name, purifier = request.classifier, request.purify
    if isinstance(name, str) and (split := split_name(name)) is not None:
        if purifier is not None:
            raise SpecError(f"{name} has a purifier already; drop --purify.")
        purifier, name = split
    if is_address(name):
        return load_asked(request, dataset.shape)
    classifier = load_classifier(name, weights=request.weights, shape=dataset.shape)
    if purifier is not None:
        return defend(classifier, purifier, gradient=request.gradient)
    if request.gradient != "full":
        raise SpecError("--gradient says how gradients cross a purifier; add --purify NAME, or drop it.")
    return classifier


def _plan_of(request: Request, threat: ThreatModel, *, known: bool = True) -> Plan:
    """The plan as asked for; `known` says whether the threat model is the one that will be attacked."""
    named = isinstance(request.classifier, str) and split_name(request.classifier) is not None
    default = "patches" if threat.norm == "patch" else "rapid"
    default = "adaptive" if named or request.purify is not None else default
    default = default if threat.bounded else "nearest"
    default = default if request.queries is None and not is_address(request.classifier) else "queries"
    default = default if request.surrogates is None else "transfer"
    plan = _with_start(parse_plan(request.plan or default, request.attacks, threat), request.start)
    plan = plan if request.queries is None else limit(plan, request.queries)
    plan = check_surrogate_plan(plan, threat, surrogates=request.surrogates is not None)
    check_goal(plan, threat, norm_known=known)
    plan = plan if threat.bounded else replace(plan, individual=True)
    return plan if request.eot is None else replace(plan, eot=request.eot)


def _goal_of(request: Request, plan: Plan) -> Goal:
    """What was asked for on the command line or in the plan's file, if every attack of the plan can do it."""
    asked, planned = (None if text is None else Goal.parse(text) for text in (request.goal, plan.goal))
    if asked is not None and planned is not None and asked != planned:
        raise SpecError(f"--goal {asked} contradicts plan {plan.name}, which says goal {planned}; drop one of the two.")
    goal = asked or planned or UNTARGETED
    check_goal_of([(ATTACKS.name_of(attack_of(entry)), attack_of(entry)) for entry in plan.entries()], goal)
    if goal.kind == "all" and request.report == "distance":
        raise SpecError("--goal all counts successes inside an eps; with --report distance type --goal targeted:CLASS.")
    return goal


def _plan_for(request: Request, classifier: Classifier, threat: ThreatModel) -> Plan:
    """The plan, if it suits the classifier."""
    plan = _plan_of(request, threat)
    if not plan.crosses:
        return plan
    if not isinstance(classifier, Defended):
        raise SpecError(
            f"--plan {plan.name} crosses a purifier, and {classifier.card.name} has none; add --purify NAME "
            "(`robustgen list purifiers`), or type --plan rapid."
        )
    if not hasattr(classifier.purifier, "steps"):  # nothing to shorten: that rung would be the one by exact gradients
        plan = replace(plan, attacks=tuple(a for a in plan.attacks if getattr(a, "crossing", "") != "surrogate"))
    return plan if classifier.stochastic else plan.for_deterministic()


def _with_start(plan: Plan, start: Adversarials | None) -> Plan:
    """The plan, after the images of an earlier run."""
    return plan if start is None else replace(plan, attacks=(Replay(source=start, project=1), *plan.attacks))


def _walks(threat: ThreatModel) -> bool:
    """Do attacks end at the boundary whatever their first rounds say, so that these may be coarse?"""
    return not threat.bounded and threat.norm != "l0"


def _shared_form(
    classifier: nn.Module, x: Tensor, y: Tensor, request: str, ranks: Ranks, *, exact: bool, walks: bool
) -> tuple[SearchModel, list[str]]:
    """What `choose_form` says on rank 0, whose timing the others do not disturb."""
    if isinstance(classifier, Remote):  # there is one form, and timing it would be paid for
        return SearchModel(classifier, SearchForm()), []
    chosen = choose_form(classifier, x, y, request, exact=exact, walks=walks) if ranks.first else None
    form = ranks.from_first(None if chosen is None else str(chosen[0].form))
    return chosen or choose_form(classifier, x, y, str(form))


def _protocol(plans: Sequence[Plan], threats: Sequence[ThreatModel], classes: int) -> str:
    """The plan's protocol, or one for each threat model where the norms differ."""
    if len(plans) == 1:
        return plans[0].protocol(classes)
    return " | ".join(f"{threat}: {plan.protocol(classes)}" for plan, threat in zip(plans, threats, strict=True))


def _choose_ids(request: Request, dataset: Dataset) -> list[int]:
    ids = request.ids
    if ids is not None and not isinstance(ids, str):
        try:
            ids = ",".join(str(index(id_)) for id_ in ids)
        except TypeError:
            raise SpecError(f"ids must be integers, got {list(ids)[:5]}.") from None
    return parse_ids(ids, request.n, len(dataset), dataset.name)


def default_data(classifier: str | nn.Module) -> str:
    """The data that the card names; the embedded images for Fashion-MNIST, or where no card says."""
    if isinstance(classifier, nn.Module):
        return _EMBEDDED
    classifier = (split_name(classifier) or ("", classifier))[1]
    if classifier.startswith(ROBUSTBENCH):
        return ZooName.parse(classifier).data
    path = bundled_cards().get(classifier) or (Path(classifier) if classifier.endswith(".json") else None)
    named = None if path is None else Card.load(path).data
    return _EMBEDDED if named in (None, "fashion-mnist") else named


def _any_threat(request: Request) -> ThreatModel:
    """One of the kind asked for, to check a plan under before the threat model is known."""
    return ThreatModel.unbounded("l2") if request.report == "distance" else ThreatModel("linf", 0.1)


def _default_threat(classifier: Classifier, dataset: Dataset, report: str) -> str:
    threat = classifier.card.threat or _THREATS.get(dataset.name)
    if threat is None:
        example = "l2" if report == "distance" else "linf:8/255"
        raise SpecError(f"no threat model is known for {dataset.name}; name one, for example --threat {example}.")
    return threat.partition(":")[0] if report == "distance" else threat


def _count_classes(classifier: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return int(classifier(x[:1]).shape[1])


def _recorded_precision(spec: RunSpec, out: Path | None, stem: str) -> str | None:
    """The form that an earlier process chose for this very run, so that a resumed run keeps it."""
    folders = [out] if out is not None else sorted(Path("runs").glob(f"{stem}-*"))
    for folder in folders:
        held = saved_spec(folder)
        if held is not None and replace(spec, precision=held.precision) == held:
            return held.precision
    return None


def slug(name: str) -> str:
    """A name as part of a folder name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name.rpartition("/")[2]).strip("-") or "user"
