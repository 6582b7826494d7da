"""The seam: nothing outside a family's folder names its classes, and a family answers everything."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
from pathlib import Path

import pytest

from molmoact_data.errors import UserError
from molmoact_data.policies import POLICIES
from molmoact_train.config import from_json, resolve, to_json
from molmoact_train.families import registry
from molmoact_train.families.base import Family

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ROOT / "molmoact_train" / "families"
GIVEN = {"checkpoint": "c", "data": ["d"], "output_path": "s"}


def classes_of(folder: Path) -> set[str]:
    """Names of all networks and processors that a family's modules define."""
    trees = [ast.parse(path.read_text()) for path in folder.rglob("*.py")]
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.lower().startswith(folder.name)
    }


def names_in(path: Path) -> set[str]:
    """Every name a module imports or uses, attributes included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_nothing_outside_its_folder_names_a_familys_classes(family: str) -> None:
    own = classes_of(FAMILIES / family)
    assert any("Config" in name or "For" in name for name in own), "the test looks at something"
    packages = ("molmoact_data", "molmoact_train", "molmoact_robot", "pipelines", "vqvae")
    files = [ROOT / "cli.py", *(p for package in packages for p in (ROOT / package).rglob("*.py"))]
    outside = [p for p in files if not p.is_relative_to(FAMILIES)]
    assert len(outside) > 50
    named = {str(p.relative_to(ROOT)): names_in(p) & own for p in outside}
    assert not {path: names for path, names in named.items() if names}


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_a_family_answers_everything_with_the_seams_arguments(name: str) -> None:
    family = registry.load_family(name)
    assert family.name == name
    asked = {n: f for n, f in inspect.getmembers(Family, inspect.isfunction) if n[0] != "_"}
    assert len(asked) > 15
    for method, wanted in asked.items():
        assert list(inspect.signature(getattr(family, method)).parameters) == [
            p for p in inspect.signature(wanted).parameters if p != "self"
        ], method


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_a_family_writes_a_tiny_model_that_it_recognises(name: str, tmp_path: Path) -> None:
    family = registry.load_family(name)
    folder = family.write_tiny(tmp_path / "tiny")
    assert registry.family_name(folder) == name
    config = resolve("debug", GIVEN, {"family": name})
    pickle.loads(pickle.dumps(family.encoder(folder, config, training=True)))
    model = family.build(folder, config)
    names = [n for n, _ in model.named_parameters()]
    assert {family.group(n) for n in names} == set(family.groups) == set(family.rates(config))
    assert family.units(model)


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_every_stage_resolves_and_survives_its_json(name: str) -> None:
    for stage in registry.stages(name):
        config = resolve(stage, GIVEN, {"family": name})
        assert from_json(json.loads(json.dumps(to_json(config)))) == config
        assert isinstance(config.settings, registry.settings_class(name))


def test_runs_and_policies_know_the_same_families() -> None:
    assert set(registry.FAMILIES) <= set(POLICIES)


def test_a_run_of_before_there_were_families_is_molmoacts() -> None:
    values = to_json(resolve("debug", GIVEN))
    del values["family"]
    assert from_json(values).family == "molmoact"


def test_mistakes_name_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'molmoact'"):
        resolve("debug", GIVEN, {"family": "molmoat"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="model_type"):
        registry.family_name(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "molmoact"}))
    with pytest.raises(UserError, match="say --family molmoact"):
        registry.family_for("molmoact2", tmp_path)
