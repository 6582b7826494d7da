"""JSON beside a model, a measurement or a web set that a crash cut or somebody edited: one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from molmoact_data.errors import UserError
from molmoact_data.web.rows import MANIFEST_FILE
from molmoact_robot.evaluation.evaluate import Plan, claim
from molmoact_robot.evaluation.player import read_results
from molmoact_train.folders.layout import read_config, statistics_beside
from pipelines.web.config import WebConfig
from pipelines.web.run import preprocess_web

damaged = pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a": NaN'],
    ids=["empty", "cut", "list", "null", "utf-16", "deep", "nan"],
)


@damaged
def test_of_a_model_folder(tmp_path: Path, content: bytes) -> None:
    for name, read in (
        ("config.json", read_config),
        ("dataset_statistics.json", statistics_beside),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read(tmp_path)


@damaged
def test_of_a_measurement(tmp_path: Path, content: bytes) -> None:
    plan = Plan({"seed": 1}, {}, {}, {})
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json.*--overwrite"):
        claim(tmp_path, plan, resume=True, overwrite=False)
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "pick-000.json").write_bytes(content)
    with pytest.raises(UserError, match=r"pick-000\.json"):
        read_results(tmp_path)


@damaged
def test_of_a_web_set(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_FILE).write_bytes(content)
    config = WebConfig("pixmo_points_train", str(tmp_path), str(tmp_path / "out"), resume=True)
    with pytest.raises(UserError, match=MANIFEST_FILE):
        preprocess_web(config)
