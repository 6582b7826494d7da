"""`--checkpoint embedded`: the model that ships with the package acts in a simulator, on a wire and on the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_gl import needs_gl
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from safetensors.torch import load_file, save_file

from molmoact_data.errors import UserError
from molmoact_data.policies import EMBEDDED, EMBEDDED_POLICY, Observation, load_policy
from molmoact_data.text import prompts
from molmoact_robot.evaluation.results import wilson_interval
from molmoact_robot.portal.conversation import Table, ask
from molmoact_robot.serving.config import ServeConfig
from molmoact_robot.serving.server import in_background

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(3)
FRONT, WRIST = RNG.integers(0, 256, (2, 128, 128, 3), np.uint8)
INSTRUCTION = "pick up the red cube"


@pytest.fixture(scope="module")
def policy():
    return load_policy(EMBEDDED, device="cpu")


def test_its_answer_is_whole_depth_trace_and_a_chunk_inside_the_statistics(policy) -> None:
    chunk = policy.act(Observation({"front": FRONT, "wrist": WRIST}, INSTRUCTION))
    entry = json.loads((EMBEDDED_POLICY / "config.json").read_text())["norm_stats"]["tabletop"]
    low, high = (np.array(entry["action"][name]) for name in ("q01", "q99"))
    assert chunk.actions_HD.shape == (8, 7)
    assert chunk.actions_HD.dtype == np.float32
    assert (low - 1e-6 <= chunk.actions_HD).all()
    assert (chunk.actions_HD <= high + 1e-6).all()
    assert chunk.depth_codes.shape == (100,)
    assert chunk.trace_P2.min() >= 0
    assert chunk.trace_P2.max() <= 255
    assert prompts.parse(chunk.text, action_dim=7).problems == []


def test_it_is_the_same_answer_every_time(policy) -> None:
    first, again = (
        policy.act(Observation({"front": FRONT, "wrist": WRIST}, INSTRUCTION)) for _ in range(2)
    )
    assert first.text == again.text


def test_it_looks_another_picture_is_another_path_and_another_motion(policy) -> None:
    """A model whose pictures do not reach its decoder says the same to all of them."""
    dark, bright = (np.full((128, 128, 3), level, np.uint8) for level in (10, 250))
    answers = [
        policy.act(Observation({"front": picture, "wrist": picture}, INSTRUCTION))
        for picture in (FRONT, dark, bright)
    ]
    assert len({a.trace_P2.tobytes() for a in answers}) > 1
    assert len({a.actions_HD.tobytes() for a in answers}) > 1


def test_openpis_client_is_answered_by_the_shipped_model(policy) -> None:
    with in_background(policy, ServeConfig(port=0)) as url:
        host, _, port = url.removeprefix("ws://").partition(":")
        answer = WebsocketClientPolicy(host, int(port)).infer(
            {"observation/image": FRONT, "observation/wrist_image": WRIST,
             "observation/state": np.zeros(8, np.float32), "prompt": INSTRUCTION}
        )  # fmt: skip
    alone = policy.act(Observation({"front": FRONT, "wrist": WRIST}, INSTRUCTION))
    assert answer["actions"].dtype == np.float32
    np.testing.assert_array_equal(answer["actions"], alone.actions_HD)


@needs_gl
def test_eval_plays_it_and_leaves_what_others_rely_on(molmoact, tmp_path) -> None:
    code, out, err = molmoact(
        *("eval", "--env", "tabletop", "--checkpoint", "embedded", "--tasks", "pick", "--trials", "2"),
        *("--seed", "771100", "--output-path", tmp_path / "pick", "--json"),
        *("--max-steps", "8", "--env-arg", "image_size=128"),
    )  # fmt: skip
    assert code == 0, err
    found = json.loads((tmp_path / "pick" / "results.json").read_text())
    assert json.loads(out) == found
    assert found["n"] == 2
    assert found["interval"] == list(wilson_interval(found["successes"], 2))
    assert found["per_task"]["pick"]["n"] == 2
    assert "failures" in found
    assert found["predictions"]["failed"] == 0, "constrained answers are always whole"
    assert found["settings"]["player"]["checkpoint"] == "embedded"
    assert (tmp_path / "pick" / "eval.html").is_file()
    films = sorted(path.name for path in (tmp_path / "pick" / "episodes").glob("*.mp4"))
    assert films == ["pick-000.mp4", "pick-001.mp4"]


def test_the_page_asks_it_free_and_steered(policy) -> None:
    table = Table().with_picture(FRONT, 2).with_picture(WRIST, 2)
    table = table.with_click(20, 30, at=1.0).with_click(90, 100, at=2.0)
    answers = ask(policy, table, INSTRUCTION)
    assert answers.free.trace_P2 is not None
    assert answers.difference_HD.shape == (8, 7)


def test_a_lost_weight_is_no_model(tmp_path) -> None:
    """Loading is strict: nothing that is missing is drawn at random."""
    for file in EMBEDDED_POLICY.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((UserError, RuntimeError), match="lm_head"):
        load_policy(tmp_path, device="cpu")


@needs_gl
def test_the_whole_loop_runs_at_its_debug_size(tmp_path) -> None:
    """Demonstrations to a table of success rates by the script that people run."""
    command = [sys.executable, "scripts/close_the_loop.py", tmp_path / "loop", "--size", "debug"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((tmp_path / "loop" / "loop.json").read_text())
    names = ["idle", "expert", "model", "the same network without depth and trace"]
    assert list(table)[:4] == names
    assert all(row["n"] == 1 for row in table.values())
    assert load_policy(tmp_path / "loop" / "model", device="cpu").info.horizon == 8
