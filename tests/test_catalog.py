"""What `list` and `show` say: nothing has a name without a description, and parameters can be typed as shown."""

from __future__ import annotations

import re

import pytest

from robustgen import catalog
from robustgen.attacks.plans import parse_attack
from robustgen.detectors.detector import bundled_detectors
from robustgen.detectors.recipe import list_detector_recipes
from robustgen.errors import SpecError
from robustgen.generator.card import bundled_generators
from robustgen.generator.recipe import list_generator_recipes
from robustgen.generator.samplers import SAMPLERS
from robustgen.registry import ATTACKS, PLANS
from robustgen.suites import suite_files
from robustgen.training.train import list_recipes


@pytest.mark.parametrize("kind", sorted(catalog.KINDS))
def test_entries_are_sorted_and_described(kind: str) -> None:
    """One line each, in the order of their names."""
    rows = catalog.listing(kind)
    names = [name for name, _ in rows]
    assert names == sorted(set(names))
    for name, text in rows:
        assert text.strip(), name
        assert "\n" not in text


def test_everything_registered_is_listed() -> None:
    """What can be typed can be found."""
    assert set(ATTACKS) == set(dict(catalog.listing("attacks")))
    assert {*PLANS, "FILE.toml"} == set(dict(catalog.listing("plans")))
    assert set(suite_files()) == set(dict(catalog.listing("suites")))
    recipes = set(list_recipes()) | set(list_generator_recipes()) | set(list_detector_recipes())
    assert recipes == set(dict(catalog.listing("recipes")))
    assert set(bundled_detectors()) < set(dict(catalog.listing("detectors")))
    assert set(SAMPLERS) == set(dict(catalog.listing("samplers")))
    assert set(bundled_generators()) < set(dict(catalog.listing("generators")))


@pytest.mark.parametrize("name", list(ATTACKS))
def test_parameters_can_be_typed_as_shown(name: str) -> None:
    """`show` gives the defaults in the form that --attacks reads; each attack with parameters of its own has some."""
    shown = re.findall(r"^  (\w+) = (\S+)$", catalog.details(name), re.MULTILINE)
    assert shown or name == "clean"
    typed = ":".join([name, *(f"{key}={value}" for key, value in shown)])
    assert parse_attack(typed) == ATTACKS[name]()


def test_attack_names_its_source() -> None:
    """The page of an attack says where it comes from."""
    assert "arXiv:1706.06083" in catalog.details("pgd")


def test_plan_shows_its_protocol_for_each_norm() -> None:
    """What a plan runs depends on the norm."""
    shown = catalog.details("rapid")
    for norm in ("linf", "l2", "l1"):
        assert re.search(rf"^  {norm} +rapid/3: \S+\(steps=", shown, re.MULTILINE)


def test_one_name_of_two_kinds_shows_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier and the recipe that made it share their name."""
    recipe = next(iter(list_recipes()))
    monkeypatch.setitem(catalog.KINDS, "data", lambda: {recipe: "data of the same name"})
    monkeypatch.setitem(catalog._DETAILS, "data", lambda name: f"data {name}")
    shown = catalog.details(recipe)
    assert f"data {recipe}" in shown
    assert f"recipe {recipe}\n" in shown


def test_unknown_names_suggest_the_nearest() -> None:
    """For kinds and for names."""
    with pytest.raises(SpecError, match="unknown kind 'attack'; did you mean 'attacks'"):
        catalog.listing("attack")
    with pytest.raises(SpecError, match=r"unknown name 'squar'; did you mean 'square'.*robustgen list attacks"):
        catalog.details("squar")
