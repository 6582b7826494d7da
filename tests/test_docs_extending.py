"""The examples of docs/extending.md are files that work as they stand."""

from __future__ import annotations

import csv
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from made_commands import Molmoact

from molmoact_data.outputs.output import Output
from molmoact_data.teachers import registry
from molmoact_data.teachers.choice import TeacherConfig, load_teachers
from molmoact_train.families.registry import FAMILIES, load_family

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(
    r"```python\n(\"\"\"(\w+)\.py: .*?)```", (ROOT / "docs/extending.md").read_text(), re.S
)
SOURCES = {name: code for code, name in BLOCKS}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`example("my_pointer")`: the page's file, importable by its name."""
    for name, code in SOURCES.items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return __import__


def test_a_teacher(example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    example("my_pointer")
    table = {**registry.GRIPPER_POINTERS, "brightest": "my_pointer:BrightestPixel"}
    for place in ("registry", "choice"):
        monkeypatch.setattr(f"molmoact_data.teachers.{place}.GRIPPER_POINTERS", table)
    pointer = load_teachers(TeacherConfig(depth="none", pointer="brightest"), "cpu").pointer
    rgb = np.zeros((2, 5, 9, 3), np.uint8)
    rgb[0, 4, 8] = rgb[1, 0, 4] = 255
    points = pointer.point(rgb, "point to the gripper")
    np.testing.assert_array_equal(points.xy_NA2[:, 0], [[1, 1], [0.5, 0]])


def test_a_source(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    action = rng.normal(size=(5, 7)).astype(np.float32)
    np.savez(folder / "0.npz", rgb=rgb, action=action, instruction="wipe the table")
    source = example("my_source").NumpySource(folder)
    columns = source.read_columns(source.episodes[0])
    np.testing.assert_array_equal(columns.action, action)
    assert set(columns.instructions) == {"wipe the table"}
    frames = [b["front"].rgb_NHWC for b in source.iter_frames(source.episodes[0], ["front"], 2)]
    np.testing.assert_array_equal(np.concatenate(frames), rgb)


def test_an_exporter(
    example: Callable[[str], ModuleType], make_output: Callable[..., Path], tmp_path: Path
) -> None:
    output = Output.open(str(make_output()))
    rows, left_out = example("my_exporter").export_csv(output, tmp_path)
    total = sum(batch.num_rows for batch in output.batches())
    assert rows + sum(left_out.values()) == total
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.reader(file))) == rows > 0


def test_an_environment(
    example: Callable[[str], ModuleType], molmoact: Molmoact, tmp_path: Path
) -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(example("my_world").LineWorld(), skip_render_check=True)
    arguments = ["--env", "my_world:LineWorld", "--checkpoint", "idle", "--trials", "2"]
    code, _, err = molmoact("eval", *arguments, "--output-path", tmp_path / "eval")
    assert code == 0, err


def test_every_family_answers_the_whole_protocol() -> None:
    from molmoact_train.families.base import Family

    asked = [n for n, m in vars(Family).items() if inspect.isfunction(m) and not n.startswith("_")]
    assert len(asked) > 10
    for name in FAMILIES:
        family = load_family(name)
        missing = [method for method in asked if not callable(getattr(family, method, None))]
        assert not missing, f"{name} lacks {missing}"
