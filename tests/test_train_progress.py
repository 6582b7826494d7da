"""What a person sees of a run: page, log file, bar."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_commands import Molmoact

from molmoact_data.pages.charts import line_chart
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.monitoring.page import render_run_page

ROOT = Path(__file__).resolve().parents[1]
LINES = [
    {"step": 1, "train/loss": 2.0, "lr/llm": 1e-5, "grad_norm/llm": 3.0},
    {"step": 3, "train/loss": 1.0, "lr/llm": 2e-5, "eval/loss": 1.5, "eval/action_error": 0.25},
]


class Texts(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.found.append(data.strip())


def test_the_page_says_where_the_run_is_and_escapes_names() -> None:
    config = {"duration": 10, "family": "molmoact", "data": ["a<b>", "c"], "checkpoint": "x"}
    page = render_run_page("run <1>", config, LINES)
    told = Texts(page).found
    assert "run <1>" in told
    assert "a<b>, c" in told
    assert told[told.index("held-out loss") - 1] == "1.5"
    for title in ("Loss", "Held-out actions", "Gradient norms", "Learning rates"):
        assert title in told
    assert "Memory" not in told
    assert "http" not in page
    assert render_run_page("run <1>", config, LINES) == page
    assert "No step has been reported yet." in Texts(render_run_page("new", config, [])).found


def test_a_line_chart_spans_its_axes_and_stands_a_single_value() -> None:
    chart = line_chart({"a": [(1, 2.0), (3, 1.0)]}, title="t", y="loss", x="step")
    first, last = re.search(r'polyline points="([^"]+)"', chart).group(1).split(" ")
    left, top, right, base = (float(v) for v in [*first.split(","), *last.split(",")])
    assert (left, top, right, base) == (0, 0, 100, 100)
    assert re.findall(r"<span>([^<]+)</span>", chart)[:3] == ["2", "1.5", "1"]
    for name in ("loss", "step"):
        assert f">{name}</div>" in chart
    assert "polyline" in line_chart({"a": [(1, 0.0)]}, title="t", y="loss", x="step")
    assert line_chart({}, title="t", y="loss", x="step") == ""


def debug_flags(tmp_path: Path) -> list[str]:
    from molmoact_train.families.molmoact.tiny import write_tiny_checkpoint

    data, tiny = tmp_path / "data", tmp_path / "tiny"
    write_debug_dataset(data)
    write_tiny_checkpoint(tiny)
    flags = ["train", "--stage", "debug", "--checkpoint", tiny, "--data", data]
    flags += ["--output-path", tmp_path / "run", "--device", "cpu", "--num-workers", "0"]
    return list(map(str, [*flags, "--duration", "3"]))


def test_a_run_leaves_a_page_and_a_log_with_times(molmoact: Molmoact, tmp_path: Path) -> None:
    code, _, err = molmoact(*debug_flags(tmp_path))
    assert code == 0, err
    run = tmp_path / "run"
    assert "training loss" in Texts((run / "run.html").read_text()).found
    log = (run / "train.log").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO \[step 1/3\] ", log, re.M)
    assert re.search(r"\[step 3/3\] .*train/loss .*elapsed, 0:00:00 left", log)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 3


def test_a_terminal_gets_a_bar_with_the_lines_above_it(tmp_path: Path) -> None:
    pytest.importorskip("termios", reason="needs a pseudo-terminal")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", *debug_flags(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "xterm"}
    running = subprocess.Popen(
        command, stderr=theirs, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment
    )
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert running.wait() == 0
    text = shown.decode()
    assert "3/3" in text
    assert "samples/s" in text
    assert "[step 3/3]" in text
