"""The house rules, as tests: imports point down, and cheap things stay cheap to import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = "molmoact_data"
SIBLINGS = ("pipelines", "vqvae", "molmoact_train", "molmoact_robot")


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", [BASE, *SIBLINGS])
def test_imports_point_down(package: str) -> None:
    forbidden = {*SIBLINGS, "cli"} - {package} if package != BASE else {*SIBLINGS, "cli"}
    for path in (ROOT / package).rglob("*.py"):
        assert not imported_packages(path) & forbidden, f"{path.relative_to(ROOT)} imports upwards"


# Inside packages: what a module may import, read from the source.

FLOORS = [
    "errors", "schema", "redaction", "config", "console", "files", "processes", "runs", "policies", "statistics",
    "labels", "sources", "text", "outputs", "teachers", "pictures", "pages", "validate", "label_quality", "exporters",
    "report", "web", "publishing", "commands",
]  # fmt: skip
"""Modules and folders of the base: each may import those before it."""
LOOSE = 10
"""Files at the top of a package, beside its `__init__`."""


def modules_of(root: Path, packages: Sequence[str]) -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in (p for package in packages for p in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(modules: Mapping[str, Path], *, types: bool = True) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, at its top, in functions and (with `types`) for types alone."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        tree = ast.parse(path.read_text())
        checks = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
        ]
        left_out = set() if types else {id(n) for check in checks for n in ast.walk(check)}
        for node in ast.walk(tree):
            if id(node) in left_out:
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                each = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found |= {full if full in modules else node.module for full in each.values()}
        graph[name] = found & set(modules) - {name}
    return graph


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle, first module repeated at its end; empty where there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def uphill(graph: Mapping[str, set[str]], package: str, floors: Sequence[str]) -> list[str]:
    """Imports inside a package that do not point down; a room without a floor counts too."""
    height = {room: i for i, room in enumerate(floors)}

    def room(module: str) -> str | None:
        parts = module.split(".")
        return parts[1] if parts[0] == package and len(parts) > 1 else None

    wrong = []
    for module, imported in graph.items():
        for other in imported:
            here, there = room(module), room(other)
            if here is None or there is None or here == there:
                continue
            if here not in height or there not in height or height[there] >= height[here]:
                wrong.append(f"{module} imports {other}")
    return wrong


def registered_names(modules: Mapping[str, Path]) -> dict[str, str]:
    """Every string `package.module:Attribute` in the source -> the module that holds it."""
    pattern = re.compile(rf"(?:{'|'.join((BASE, *SIBLINGS))})(?:\.\w+)+:\w[\w.]*")
    return {
        node.value: name
        for name, path in modules.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and pattern.fullmatch(node.value)
    }


def test_no_circle_and_no_import_uphill() -> None:
    modules = modules_of(ROOT, (BASE, *SIBLINGS))
    assert circle_in(imports_of(modules, types=False)) == []
    assert uphill(imports_of(modules), BASE, FLOORS) == []


def test_circles_and_uphill_imports_are_seen(tmp_path: Path) -> None:
    """The test above can fail, also for an import inside a function or for a type checker."""
    for name, text in {
        "__init__": "", "low": "", "high": "from house.low import x", "new": "import house.low",
        "sly": "def f():\n    from house import high",
        "types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.sly import f",
    }.items():  # fmt: skip
        (tmp_path / "house").mkdir(exist_ok=True)
        (tmp_path / "house" / f"{name}.py").write_text(text)
    graph = imports_of(modules_of(tmp_path, ["house"]))
    assert circle_in(graph) == []
    assert sorted(uphill(graph, "house", ["low", "sly", "high", "types"])) == [
        "house.new imports house.low",
        "house.sly imports house.high",
    ]
    (tmp_path / "house" / "low.py").write_text("def f():\n    from house.sly import g")
    circle = circle_in(imports_of(modules_of(tmp_path, ["house"]), types=False))
    assert set(circle) == {"house.low", "house.sly", "house.high"}


def test_names_in_registries_lead_somewhere() -> None:
    modules = modules_of(ROOT, (BASE, *SIBLINGS))
    registered = registered_names(modules)
    assert len(registered) > 8
    for text, holder in registered.items():
        module, _, attribute = text.partition(":")
        assert module in modules, f"{holder} names {text}"
        tree = ast.parse(modules[module].read_text())
        defined = {getattr(node, "name", None) for node in tree.body}
        assert attribute.partition(".")[0] in defined, f"{holder} names {text}"
        package = holder.partition(".")[0]
        assert package == BASE or module.startswith(f"{package}."), f"{holder} names a sibling"


def loose_files(package: Path) -> list[str]:
    return sorted(p.name for p in package.glob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("package", ["molmoact", BASE, *SIBLINGS])
def test_a_package_is_rooms_not_a_heap(package: str) -> None:
    assert len(loose_files(ROOT / package)) <= LOOSE, loose_files(ROOT / package)


def test_a_heap_is_seen(tmp_path: Path) -> None:
    """Files in rooms and `__init__` do not count, a module more does."""
    (tmp_path / "room").mkdir()
    for name in ("__init__.py", "room/inside.py", *(f"m{i}.py" for i in range(LOOSE))):
        (tmp_path / name).touch()
    assert len(loose_files(tmp_path)) == LOOSE
    (tmp_path / "one_more.py").touch()
    assert len(loose_files(tmp_path)) > LOOSE


def test_only_pipelines_import_beam() -> None:
    for package in (BASE, "vqvae", "molmoact_train"):
        for path in (ROOT / package).rglob("*.py"):
            assert "apache_beam" not in imported_packages(path), path.relative_to(ROOT)


def test_only_the_door_and_the_commands_know_typer() -> None:
    files = [p for package in (BASE, *SIBLINGS) for p in (ROOT / package).rglob("*.py")]
    using = {p.relative_to(ROOT).as_posix() for p in files if "typer" in imported_packages(p)}
    assert "molmoact_data/console/__init__.py" in using
    others = {path for path in using if not path.startswith("molmoact_data/console/")}
    assert not [path for path in others if not path.endswith(("commands.py", "command_options.py"))]


def modules_loaded_by(code: str) -> set[str]:
    report = "import sys; print(' '.join({m.partition('.')[0] for m in sys.modules}))"
    script = code + "\n" + report
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_neither_torch_nor_beam() -> None:
    code = (
        "import cli\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0"
    )
    assert not modules_loaded_by(code) & {"torch", "apache_beam", "transformers", "datasets"}


def test_base_needs_numpy_and_pyarrow_alone() -> None:
    heavy = {
        "torch",
        "cv2",
        "av",
        "PIL",
        "transformers",
        "datasets",
        "apache_beam",
        "pandas",
        "yaml",
    }
    light = [
        "schema", "errors", "statistics", "policies", "text.tokens", "text.prompts", "labels.actions",
        "labels.traces", "labels.quality", "labels.depth", "labels.pointing", "teachers.registry",
        "outputs.shards", "sources.base", "sources.opening",
    ]  # fmt: skip
    code = "\n".join(f"import molmoact_data.{m}" for m in light)
    assert not modules_loaded_by(code) & heavy


def test_an_install_with_extras_has_everything_that_is_imported() -> None:
    """What only tests and benchmarks import, `lerobot` for one, belongs to `dev`."""
    text = (ROOT / "pyproject.toml").read_text().partition("\ndev = [")[0]
    declared = {name.lower() for name in re.findall(r'"([\w-]+)(?:[><=\[][^"]*)?"', text)}
    files = [
        ROOT / "cli.py",
        *(p for root in (BASE, *SIBLINGS) for p in (ROOT / root).rglob("*.py")),
    ]
    imported = set().union(*map(imported_packages, files))
    imported -= {*sys.stdlib_module_names, BASE, *SIBLINGS, "tokenizers"}  # with transformers
    distributions = packages_distributions()
    missing = {
        name
        for name in imported
        if not {d.lower().replace("_", "-") for d in distributions[name]} & declared
    }
    assert not missing
    assert "lerobot" not in imported | declared


def test_the_slow_tests_that_are_named_exist() -> None:
    lines = (ROOT / "tests" / "slow.txt").read_text().splitlines()
    for name in (line for line in lines if not line.startswith("#")):
        path, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / path).read_text(), name
