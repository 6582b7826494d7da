"""Which dimension is the gripper: what its name says, before where it stands; a flag says it best."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import make_dataset, rows_path

from molmoact_data.publishing.card import escaped
from molmoact_data.statistics import ActionSpec, named_grippers

JOINTS = [f"joint_{n}.pos" for n in range(1, 8)]
POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
SCALED, GRIPPER = (True, False, False), (False, True, True)


@pytest.mark.parametrize(
    ("names", "grippers"),
    [
        ([*POSE, "gripper"], (6,)),
        (["gripper_open", *POSE], (0,)),
        ([*JOINTS[:3], "left_finger", *JOINTS[3:6]], (3,)),
        (JOINTS, ()),
        (["shoulder_pan.pos", "shoulder_lift.pos", "elbow.pos", "wrist_1", "wrist_2", "wrist_3", "rail"], ()),
        ([f"motor_{n}" for n in range(7)], None),
        ([str(n) for n in range(7)], None),
        ([f"action_{n}" for n in range(7)], None),
        (["main_0.pos", "main_1.pos", "main_2.pos", "main_3.pos", "main_4.pos", "main_5.pos", "main_6.pos"], None),
    ],
)  # fmt: skip
def test_names_say_where_the_gripper_is_or_that_there_is_none(
    names: list[str], grippers: tuple[int, ...] | None
) -> None:
    assert named_grippers(names) == grippers
    spec = ActionSpec.default(7, names)
    expected = (6,) if grippers is None else grippers
    assert [d for d, s in enumerate(spec.dimensions) if s.gripper] == list(expected)
    assert [d for d, s in enumerate(spec.dimensions) if not s.normalize] == list(expected)


def test_other_widths_are_scaled_whatever_they_are_called() -> None:
    assert ActionSpec.default(6, [*POSE[:5], "gripper"]) == ActionSpec.default(6)
    assert ActionSpec.default(7, ["too", "few"]) == ActionSpec.default(7)


@pytest.fixture
def ramps(tmp_path: Path) -> Callable[[Any], Path]:
    """A dataset of straight ramps from -0.9 to 3.1 rad, its dimensions called like this."""

    def make(names: Any) -> Path:
        root = make_dataset(tmp_path / "arm", (30, 24))
        for episode, length in enumerate((30, 24)):
            table = pq.read_table(rows_path(root, episode))
            ramp = np.linspace(-0.9, 3.1, length, dtype=np.float32)
            column = pa.array(list(np.repeat(ramp[:, None], 7, axis=1)), pa.list_(pa.float32()))
            at = table.column_names.index("action")
            pq.write_table(table.set_column(at, "action", column), rows_path(root, episode))
        info = json.loads((root / "meta/info.json").read_text())
        info["features"]["action"]["names"] = names
        (root / "meta/info.json").write_text(json.dumps(info))
        return root

    return make


def run(molmoact: Any, root: Path, *flags: str) -> tuple[int, str, dict[str, Any], list[Any]]:
    out = root.parent / "out"
    code, _, said = molmoact(
        "preprocess", "--dataset-path", root, "--output-path", out, "--overwrite",
        "--depth", "none", "--pointer", "none", *flags,
    )  # fmt: skip
    if code:
        return code, said, {}, []
    (entry,) = json.loads((out / "dataset_statistics.json").read_text()).values()
    bins = [
        b
        for p in sorted((out / "data").glob("*.parquet"))
        for b in pq.read_table(p)["action_bins"].to_pylist()
    ]
    spec = [(d["normalize"], d["gripper"], d["invert"]) for d in entry["spec"]]
    return code, said, entry | {"spec": spec}, bins


def test_seven_joints_are_seven_scaled_dimensions(
    molmoact: Any, ramps: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    code, _, entry, bins = run(molmoact, ramps(JOINTS))
    assert (code, entry["spec"]) == (0, [SCALED] * 7)
    first = np.array([chunk[0] for chunk in bins[:30]])
    assert (np.diff(first[:, 6]) > 0).all()
    np.testing.assert_array_equal(first[:, 6], first[:, 5])
    assert "the gripper is none of them: all are scaled" in caplog.text
    assert "joint_7.pos" in caplog.text


def test_a_gripper_that_is_named_first_is_the_gripper(
    molmoact: Any, ramps: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    code, _, entry, _ = run(molmoact, ramps({"motors": ["gripper", *JOINTS[:6]]}))
    assert (code, entry["spec"]) == (0, [GRIPPER, *[SCALED] * 6])
    assert "the gripper is dimension 0 (gripper), not the last" in caplog.text
    assert "28 of 54 values are clipped (51.9 %)" in caplog.text


def test_a_flag_says_it_best(molmoact: Any, ramps: Callable[[Any], Path]) -> None:
    root = ramps(["gripper", *JOINTS[:6]])
    assert run(molmoact, root, "--gripper", "none")[2]["spec"] == [SCALED] * 7
    assert run(molmoact, root, "--gripper", "6=scale")[2]["spec"] == [
        *[SCALED] * 6,
        (True, True, False),
    ]
    assert run(molmoact, root, "--gripper", "6=keep")[2]["spec"] == [
        *[SCALED] * 6,
        (False, True, False),
    ]
    for flags in (["none", "6=keep"], ["6=none"], ["6=normalize"], ["7=keep"], ["last=keep"]):
        code, said, _, _ = run(
            molmoact, root, *(part for flag in flags for part in ("--gripper", flag))
        )
        assert code == 2
        assert said.count("error:") == 1
        assert "gripper" in said


def test_names_in_the_dataset_card_are_plain_text() -> None:
    text = escaped("<img src=x onerror=alert(1)> `a` | [x](http://e)\n# b")
    assert not set(text) & set("<>`|[]*\n")
    assert "&#60;img" in text
