"""What `robustgen list` and `robustgen show` print."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from robustgen.errors import SpecError, unknown_name

__all__ = ["KINDS", "details", "listing"]


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _attacks() -> dict[str, str]:
    from robustgen.registry import ATTACKS

    return {name: _first_line(ATTACKS[name]) for name in ATTACKS}


def _plans() -> dict[str, str]:
    from robustgen.registry import PLANS

    return {
        **{name: _first_line(PLANS[name]) for name in PLANS},
        "FILE.toml": "your own: attacks in order, with parameters, budgets and a goal (--plan FILE.toml)",
    }


def _cards() -> dict[str, Any]:
    from robustgen.cards import Card, bundled_cards

    return {name: Card.load(path) for name, path in bundled_cards().items()}


def _flags() -> dict[str, str]:
    from robustgen.flags import FLAGS

    return {name: f"raised if {flag.raised_if}" for name, flag in FLAGS.items()}


def _classifiers() -> dict[str, str]:
    return {
        **{name: card.title for name, card in _cards().items() if card.kind != "decoy"},
        "torchvision:NAME": "any torchvision classifier; with --weights FILE your own training of it",
        "robustbench:[DATA/][THREAT/]NAME": "any model of RobustBench's zoo, where that package is installed",
        "python:FILE.py:FUNCTION": "your own: a function without arguments that returns a torch.nn.Module",
        "CARD.json": "your own: a card beside its weights",
    }


def _data() -> dict[str, str]:
    from robustgen.data import DATA

    return dict(DATA)


def _suites() -> dict[str, str]:
    from robustgen.suites import load_suite, suite_files

    return {name: load_suite(name).description for name in suite_files()}


def _generators() -> dict[str, str]:
    from robustgen.generator.card import GeneratorCard, bundled_generators

    return {
        **{name: GeneratorCard.load(path).description for name, path in bundled_generators().items()},
        "diffusers:PATH": "the folder of any diffusers DDPM pipeline (UNet2DModel)",
        "CARD.json": "your own: what `robustgen generator train` or `import-edm` wrote",
    }


def _purifiers() -> dict[str, str]:
    from robustgen.purify.base import PURIFIERS

    return {name: _first_line(PURIFIERS[name]) for name in PURIFIERS}


def _samplers() -> dict[str, str]:
    from robustgen.generator.samplers import SAMPLERS

    return {name: _first_line(kind) for name, kind in SAMPLERS.items()}


def _recipes() -> dict[str, str]:
    return {name: load(name).description for name, load in _recipe_loaders().items()}


def _recipe_loaders() -> dict[str, Callable[[str], Any]]:
    """Names without reading the recipes, each of which builds its network."""
    from robustgen.detectors.recipe import list_detector_recipes, load_detector_recipe
    from robustgen.generator.recipe import list_generator_recipes, load_generator_recipe
    from robustgen.training.train import list_recipes, load_recipe

    return {
        **dict.fromkeys(list_recipes(), load_recipe),
        **dict.fromkeys(list_generator_recipes(), load_generator_recipe),
        **dict.fromkeys(list_detector_recipes(), load_detector_recipe),
    }


def _methods() -> dict[str, str]:
    from robustgen.training.method import METHODS

    return {name: _first_line(METHODS[name]) for name in METHODS}


def _tables() -> dict[str, str]:
    from robustgen.reproduce.experiment import list_tables, load_table

    return {name: load_table(name).title for name in list_tables()}


def _corruptions() -> dict[str, str]:
    from robustgen.corruptions.kinds import CORRUPTIONS

    return {name: f"{kind.family}: {kind.description}" for name, kind in CORRUPTIONS.items()}


def _detectors() -> dict[str, str]:
    from robustgen.cards import Card
    from robustgen.detectors.detector import bundled_detectors

    return {
        **{name: Card.load(path).title for name, path in bundled_detectors().items()},
        "torchvision-detection:NAME": "any of torchvision's detectors; with --weights FILE your own training of it",
        "python:FILE.py:FUNCTION": "your own: a function without arguments that returns a module of that interface",
        "CARD.json": "your own: a card beside its weights",
    }


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "attacks": _attacks,
    "plans": _plans,
    "classifiers": _classifiers,
    "data": _data,
    "purifiers": _purifiers,
    "generators": _generators,
    "samplers": _samplers,
    "methods": _methods,
    "suites": _suites,
    "recipes": _recipes,
    "tables": _tables,
    "flags": _flags,
    "corruptions": _corruptions,
    "detectors": _detectors,
}
CARD_KINDS = ("standard", "robust", "decoy")


def listing(kind: str, card_kind: str | None = None) -> list[tuple[str, str]]:
    """(name, one line) of everything of a kind; of classifiers only those whose card says `card_kind`.

    Decoys are listed only when asked for.
    """
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    if card_kind is None:
        return sorted(KINDS[kind]().items())
    if kind != "classifiers":
        raise SpecError(f"--kind is for classifiers only; type `robustgen list {kind}`.")
    if card_kind not in CARD_KINDS:
        raise unknown_name("kind of classifier", card_kind, CARD_KINDS)
    return sorted((name, card.title) for name, card in _cards().items() if card.kind == card_kind)


def details(name: str) -> str:
    """All that is known of one name, for reading."""
    known = {kind: list(_recipe_loaders() if kind == "recipes" else one()) for kind, one in KINDS.items()}
    kinds = [kind for kind in KINDS if name in known[kind] or (kind == "classifiers" and name in _cards())]
    if not kinds:
        names = [other for names in known.values() for other in names]
        raise unknown_name("name", name, names, hint=f"See `robustgen list {'|'.join(KINDS)}`.")
    return "\n\n".join(_DETAILS[kind](name) for kind in kinds)


def _attack_details(name: str) -> str:
    from robustgen.attacks.plans import parameters
    from robustgen.registry import ATTACKS

    attack = ATTACKS[name]
    lines = [
        f"attack {name}",
        "",
        inspect.getdoc(attack) or "",
        "",
        "Parameters (type --attacks NAME:parameter=value):",
    ]
    for key, default in parameters(attack).items():
        lines.append(f"  {key} = {default.protocol(10) if hasattr(default, 'protocol') else default}")
    return "\n".join(lines)


def _plan_details(name: str) -> str:
    from robustgen.registry import PLANS
    from robustgen.threat import ThreatModel

    if name == "FILE.toml":
        from robustgen.attacks import plan_files

        return f"plan {name}\n\n{inspect.getdoc(plan_files)}"
    bounded = {norm: PLANS[name](ThreatModel(norm, 0.1)).protocol(10) for norm in ("linf", "l2", "l1")}
    free = {norm: PLANS[name](ThreatModel.unbounded(norm)).protocol(10) for norm in ("linf", "l2", "l1", "l0")}
    window = {"patch": PLANS[name](ThreatModel.parse("patch:6x6")).protocol(10)}
    protocols = {"nearest": free, "patches": window}.get(name, bounded)
    lines = [f"plan {name}", "", inspect.getdoc(PLANS[name]) or "", "", "Protocol, for 10 classes:"]
    return "\n".join([*lines, *(f"  {norm:<4}  {text}" for norm, text in protocols.items())])


def _classifier_details(name: str) -> str:
    card = _cards().get(name)
    return _table(f"classifier {name}", asdict(card) if card else {"description": _classifiers()[name]})


def _flag_details(name: str) -> str:
    from robustgen.flags import FLAGS

    flag = FLAGS[name]
    return _table(f"flag {name}", {"raised if": flag.raised_if, "why": flag.why, "what to do": flag.what_to_do})


def _table(title: str, values: dict[str, Any]) -> str:
    lines = [f"  {key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return "\n".join([title, "", *lines])


def _data_details(name: str) -> str:
    return _table(f"data {name}", {"description": _data()[name]})


def _suite_details(name: str) -> str:
    from robustgen.suites import load_suite

    return _table(f"suite {name}", asdict(load_suite(name)))


def _recipe_details(name: str) -> str:
    from robustgen.detectors.recipe import list_detector_recipes
    from robustgen.generator.recipe import list_generator_recipes
    from robustgen.training.train import list_recipes

    path = (list_recipes() | list_generator_recipes() | list_detector_recipes())[name]
    command = {"generator": "generator train", "detector": "detector train"}.get(path.parent.name, "train")
    return f"recipe {name}\n\n# robustgen {command} {name}\n{path.read_text(encoding='utf-8')}"


def _generator_details(name: str) -> str:
    from robustgen.generator.card import GeneratorCard, bundled_generators

    path = bundled_generators().get(name)
    return _table(
        f"generator {name}", asdict(GeneratorCard.load(path)) if path else {"description": _generators()[name]}
    )


def _purifier_details(name: str) -> str:
    from robustgen.purify.base import PURIFIERS
    from robustgen.purify.parse import describe, parse_purifier, settings

    kind, usual = PURIFIERS[name], parse_purifier(name)
    lines = [f"  {key} = {describe(v) if hasattr(v, 'chain') else v}" for key, v in settings(kind).items()]
    cost = f"Evaluations of the generator an image: {usual.evaluations}; random: {'yes' if usual.stochastic else 'no'}."
    title = "Settings (type --purify NAME:setting=value,setting=value):"
    return "\n".join([f"purifier {name}", "", inspect.getdoc(kind) or "", "", cost, "", title, *lines])


def _sampler_details(name: str) -> str:
    from robustgen.generator.samplers import SAMPLERS

    kind = SAMPLERS[name]
    settings = [f"  {entry.name} = {entry.default}" for entry in fields(kind)]
    title = "Parameters (type --sampler NAME:parameter=value):"
    return "\n".join([f"sampler {name}", "", inspect.getdoc(kind) or "", "", title, *settings])


def _method_details(name: str) -> str:
    from robustgen.training.method import METHODS

    kind = METHODS[name]
    settings = [f"  {entry.name} = {entry.default}" for entry in fields(kind) if entry.name not in _OF_THE_RECIPE]
    title = "Options (in a recipe: options = { name = value }):"
    return "\n".join([f"method {name}", "", inspect.getdoc(kind) or "", "", title, *(settings or ["  none"])])


def _table_details(name: str) -> str:
    from robustgen.reproduce.experiment import list_tables

    return f"table {name}\n\n# robustgen reproduce {name}\n{list_tables()[name].read_text(encoding='utf-8')}"


def _corruption_details(name: str) -> str:
    from robustgen.corruptions.kinds import CORRUPTIONS

    kind = CORRUPTIONS[name]
    whose = "those of CIFAR-10-C" if kind.published else "chosen here"
    rows = [f"  severity {k}: {', '.join(map(str, row))}" for k, row in enumerate(kind.constants, 1)]
    return "\n".join([f"corruption {name}", "", inspect.getdoc(kind.apply) or "", "", f"Constants ({whose}):", *rows])


def _detector_details(name: str) -> str:
    from robustgen.cards import Card
    from robustgen.detectors.detector import bundled_detectors

    path = bundled_detectors().get(name)
    return _table(f"detector {name}", asdict(Card.load(path)) if path else {"description": _detectors()[name]})


_OF_THE_RECIPE = ("threat", "label_smoothing")  # which every method has and a recipe names for itself
_DETAILS: dict[str, Callable[[str], str]] = {
    "attacks": _attack_details,
    "plans": _plan_details,
    "classifiers": _classifier_details,
    "data": _data_details,
    "purifiers": _purifier_details,
    "generators": _generator_details,
    "samplers": _sampler_details,
    "methods": _method_details,
    "suites": _suite_details,
    "recipes": _recipe_details,
    "tables": _table_details,
    "flags": _flag_details,
    "corruptions": _corruption_details,
    "detectors": _detector_details,
}
