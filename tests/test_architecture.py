"""The house rules, as tests: imports point down, and cheap things stay cheap to import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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


def test_only_pipelines_import_beam() -> None:
    for package in (BASE, "vqvae", "molmoact_train"):
        for path in (ROOT / package).rglob("*.py"):
            assert "apache_beam" not in imported_packages(path), path.relative_to(ROOT)


def test_only_the_door_and_the_commands_know_typer() -> None:
    files = [p for package in (BASE, *SIBLINGS) for p in (ROOT / package).rglob("*.py")]
    using = {p.relative_to(ROOT).as_posix() for p in files if "typer" in imported_packages(p)}
    assert "molmoact_data/console.py" in using
    others = using - {"molmoact_data/console.py"}
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
