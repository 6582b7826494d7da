"""Bridge from TFRecords to a training step, by commands alone, on 25 real episodes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden import SHARED_DATA
from test_data_episodes_rlds import example_class, payloads
from typer.testing import CliRunner

import cli
from molmoact_data import schema

ROOT = Path(__file__).resolve().parent.parent
BRIDGE = SHARED_DATA / "bridge-rlds-octo" / "bridge_dataset" / "1.0.0"

pytestmark = pytest.mark.skipif(not BRIDGE.is_dir(), reason=f"real input is not at {BRIDGE}")


def molmoact(*arguments: str | Path) -> dict[str, Any]:
    """One command with `--json`; its object."""
    done = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def recorded_jpegs() -> Iterator[bytes]:
    """The primary camera's bytes by protobuf's own parser, episode after episode."""
    (path,) = BRIDGE.glob("*.tfrecord-*")
    for payload in payloads(path):
        features = example_class().FromString(payload).features.feature
        yield from features["steps/observation/image_0"].bytes_list.value


def check_report(page: str, rows: pa.Table) -> None:
    """One file, nothing fetched from outside, and pictures of labelled frames."""
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"' >]*)", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script src" not in page
    assert "@import" not in page
    captions = re.findall(r"<img[^>]*alt=\"Episode (\d+), frame (\d+)", page)
    keys = zip(
        rows[schema.EPISODE_INDEX].to_pylist(), rows[schema.FRAME_INDEX].to_pylist(), strict=True
    )
    assert len(captions) >= 20
    assert {(int(e), int(f)) for e, f in captions} <= set(keys)
    for heading in ("Coverage", "Trace quality", "The surest frames", "Depth codes", "Actions"):
        assert f"<h2>{heading}" in page


def test_bridge_becomes_rows_a_report_and_a_training_step(tmp_path: Path) -> None:
    from molmoact_data.runs import read_metrics
    from molmoact_train.debug.tiny import write_tiny_checkpoint

    out, run, start = tmp_path / "out", tmp_path / "run", tmp_path / "tiny"
    done = molmoact(
        *("preprocess", "--dataset-path", BRIDGE, "--output-path", out, "--preset", "embedded"),
        *("--camera", "primary=observation/image_0"),
    )
    counts = {"episodes": 25, "frames": 250, "rejected_episodes": 0}
    assert {name: done[name] for name in counts} == counts

    rows = pq.read_table(out / schema.DATA_DIR)
    images = rows[schema.image_column("primary")].to_pylist()
    assert [image["bytes"] for image in images] == list(recorded_jpegs())
    assert all(text.strip() for text in rows[schema.INSTRUCTION].to_pylist())
    check_report((out / schema.REPORT_FILE).read_text(), rows)

    write_tiny_checkpoint(start)
    findings = molmoact("validate", out, "--processor", start)
    assert (findings["passed"], findings["findings"]) == (True, {})

    trained = molmoact(
        *("train", "--stage", "debug", "--checkpoint", start, "--data", out, "--output-path", run),
        *("--duration", "1", "--warmup", "0", "--device", "cpu"),
    )
    assert trained["finished"] is True
    (step,) = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]
    assert step["step"] == 1
    assert math.isfinite(step["train/loss"])
    assert step["train/loss"] > 0
