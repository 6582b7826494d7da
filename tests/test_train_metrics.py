"""Metrics survive a crash, are not written twice by a resumed run, and reach W&B where it is asked for."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.runs import read_metrics
from molmoact_train.config import TrainConfig, resolve
from molmoact_train.monitoring.metrics import MetricsLog, panels, plot_metrics


def config(**changes: Any) -> TrainConfig:
    return resolve("debug", {"checkpoint": "c", "data": ["d"], "output_path": "s"}, changes)


def test_lines_round_trip_exactly(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, config(), from_step=0) as log:
        log.write(1, {"train/loss": 0.1 + 0.2})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 0.1 + 0.2}]
    assert Image.open(tmp_path / "metrics.png").size[0] > 500


def test_a_resumed_run_rewrites_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "a": 1}\n{"step": 5, "a": 2}\n{"step": 6, "a"')  # cut by a crash
    with MetricsLog(tmp_path, config(), from_step=3) as log:
        log.write(4, {"a": 9.0})
    assert read_metrics(path) == [{"step": 3, "a": 1}, {"step": 4, "a": 9.0}]


def test_an_empty_log_still_has_a_picture(tmp_path: Path) -> None:
    plot_metrics(tmp_path / "none.jsonl", tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


def test_a_panel_has_numbers_of_one_unit_and_is_left_out_without_any() -> None:
    assert panels(["train/loss", "batch/loss_tokens", "eval/loss_depth", "lr/llm"]) == {
        "loss": ["eval/loss_depth", "train/loss"],
        "learning rate": ["lr/llm"],
    }
    errors = ["eval/trace_distance_error", "eval/action_error", "eval/action_error_dim0"]
    assert list(panels(errors).values()) == [errors[:1], errors[1:]]


def _report_and_fail(run: Path, settings: TrainConfig) -> None:
    with MetricsLog(run, settings, from_step=0) as log:
        log.write(2, {"train/loss": 1.5})
        raise RuntimeError("stop")


def test_wandb_gets_the_configuration_and_every_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append(("log", (step, values))),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )

    def init(**options: Any) -> Any:
        calls.append(("init", options))
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    settings = config(wandb_project="arms", wandb_entity="lab")
    with pytest.raises(RuntimeError, match="stop"):
        _report_and_fail(tmp_path, settings)
    (_, options), logged, finished = calls
    assert (options["project"], options["entity"], options["dir"]) == ("arms", "lab", str(tmp_path))
    assert options["config"]["stage"] == "debug"
    assert logged == ("log", (2, {"train/loss": 1.5}))
    assert finished == ("finish", 1), "a failed run is marked as failed"
    again = MetricsLog(tmp_path, settings, from_step=2)
    again.__exit__(None, None, None)
    assert calls[3][1]["id"] == options["id"], "a resumed run continues the same W&B run"


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"null", b"\xff", b'{"loss": 1}', b'{"step": "3"}', b"[" * 100_000]
)
def test_a_damaged_line_of_the_log_is_named_and_a_cut_one_is_left_out(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n' + line)
    assert [row["step"] for row in read_metrics(path)] == [1]
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)
