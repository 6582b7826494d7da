"""Training: resumed runs equal whole ones to the bit, processes agree, the codebook stays alive."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from molmoact_data.errors import UserError
from molmoact_data.runs import METRICS_FILE, read_metrics
from vqvae.checkpoint import MODEL_FILE, load
from vqvae.config import PRESETS, Geometry, QuantizerConfig, TrainConfig, resolve_config
from vqvae.training import train as training
from vqvae.training.learner import Learner
from vqvae.training.train import batch_rows, learning_rate, to_range, train

ROOT = Path(__file__).resolve().parent.parent


def debug(**changes: Any) -> TrainConfig:
    return resolve_config("debug", {}, changes)


def losses(output: Path) -> list[dict[str, Any]]:
    """All metrics but the clock's."""
    return [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in read_metrics(output / METRICS_FILE)
    ]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert train(debug(), output, resume=False).step == 10
    return output


def assert_same_run(output: Path, whole: Path) -> None:
    assert losses(output) == losses(whole)
    theirs = load_file(whole / MODEL_FILE)
    for name, value in load_file(output / MODEL_FILE).items():
        assert torch.equal(value, theirs[name]), name


def test_a_run_leaves_what_it_promises(whole_run: Path) -> None:
    lines = read_metrics(whole_run / METRICS_FILE)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    held_out = [line["held_out"] for line in lines if "held_out" in line]
    assert set(held_out[0]) == {"all", "procedural"}
    assert {
        "mse",
        "psnr_db",
        "abs_rel",
        "delta1",
        "boundary_mae",
        "codes_used",
        "perplexity",
    } <= set(held_out[-1]["all"])
    assert sorted(p.name for p in (whole_run / "sheets").iterdir()) == [
        "step-000005.png",
        "step-000010.png",
    ]
    checkpoint = load(whole_run)
    assert checkpoint.model.geometry == debug().geometry
    assert checkpoint.training["config"]["batch_size"] == 4
    assert json.loads((whole_run / "config.json").read_text())["max_steps"] == 10


def test_sigterm_saves_and_the_resumed_run_equals_the_whole_one(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_and_kill(step: int, *rest: int) -> np.ndarray:
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        return batch_rows(step, *rest)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(training, "batch_rows", rows_and_kill)
        stopped = train(debug(), tmp_path, resume=False)
    assert (stopped.step, stopped.stopped_by_signal) == (7, True)
    assert signal.getsignal(signal.SIGTERM) is before
    assert train(debug(), tmp_path, resume=True).step == 10
    assert_same_run(tmp_path, whole_run)


def test_a_crash_between_saves_repeats_only_the_steps_since(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_or_crash(step: int, *rest: int) -> np.ndarray:
        if step == 8:
            raise RuntimeError("power cut")
        return batch_rows(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "batch_rows", rows_or_crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(debug(), tmp_path, resume=False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # what a killed process leaves
    train(debug(), tmp_path, resume=True)
    assert_same_run(tmp_path, whole_run)


def test_two_processes_see_the_same_batch_and_keep_one_codebook(
    whole_run: Path, tmp_path: Path
) -> None:
    # Before the quantiser starts, two processes must give the losses of one: the mean over the same maps.
    script = (
        "from pathlib import Path; from vqvae.config import resolve_config; from vqvae.training.train import train\n"
        f"train(resolve_config('debug', {{}}, {{}}), Path({str(tmp_path / 'run')!r}), resume=False)"
    )
    (tmp_path / "go.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "go.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = losses(tmp_path / "run"), losses(whole_run)
    for step in (0, 1):
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-5)
    assert two[1]["commitment"] == 0 < two[2]["commitment"]
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert load(tmp_path / "run").model.geometry == debug().geometry


def test_existing_runs_are_not_overwritten(whole_run: Path) -> None:
    with pytest.raises(UserError, match="--resume, replace it with --overwrite"):
        train(debug(), whole_run, resume=False)


@pytest.mark.parametrize("config", ['{"architectures": ["MolmoAct"]}', "not JSON", "[1]", None])
def test_overwrite_does_not_touch_a_folder_that_is_no_run(
    tmp_path: Path, config: str | None
) -> None:
    """A model's folder has a config.json too, and other people's folders have a data/."""
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"somebody's")
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"not that of a VQ-VAE run.*--output-path"):
        train(debug(), tmp_path, resume=False, overwrite=True)
    assert (tmp_path / "model.safetensors").read_bytes() == b"somebody's"
    assert (tmp_path / "data").is_dir()


def test_a_resumed_run_may_not_change_its_mind(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lr was 0\.001, now 0\.5"):
        train(debug(lr=0.5), whole_run, resume=True)
    (tmp_path / "notes.txt").write_text("of somebody else")
    with pytest.raises(UserError, match="nothing to resume"):
        train(debug(), tmp_path, resume=True)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a config", "config and data"])
def test_resume_starts_a_run_that_never_came_to_its_first_state(
    left: str, whole_run: Path, tmp_path: Path
) -> None:
    """A job that always says --resume must begin."""
    run = tmp_path / "run"
    if left != "nothing":
        run.mkdir()
    if "config" in left:
        shutil.copy(whole_run / "config.json", run)
    if "data" in left:
        shutil.copytree(whole_run / "data", run / "data")
    assert train(debug(), run, resume=True).step == 10
    assert_same_run(run, whole_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_by_which_signal(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_and_kill(step: int, *rest: int) -> np.ndarray:
        if step == 6:
            signal.raise_signal(number)
        return batch_rows(step, *rest)

    monkeypatch.setattr(training, "batch_rows", rows_and_kill)
    assert train(debug(), tmp_path, resume=False).exit_code == 128 + number


def test_too_little_data_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="less than one batch of 64"):
        train(debug(batch_size=64), tmp_path / "a", resume=False)
    with pytest.raises(UserError, match="no data to train on"):
        train(dataclasses.replace(debug(), data=()), tmp_path / "b", resume=False)


def test_every_epoch_sees_every_map_once_in_a_new_order() -> None:
    epochs = [np.concatenate([batch_rows(e * 5 + i, 20, 4, 0) for i in range(5)]) for e in range(2)]
    for order in epochs:
        assert sorted(order) == list(range(20))
    assert (epochs[0] != epochs[1]).any()


def test_learning_rate_rises_then_falls_to_a_hundredth() -> None:
    config = debug(lr=1.0, lr_warmup_steps=4)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.505)
    assert rates[104] == pytest.approx(0.01)


def test_torch_and_numpy_feed_the_same_values() -> None:
    from vqvae.recipe import REFERENCE, RELEASED, to_encoder_range

    maps = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for recipe in (RELEASED, REFERENCE):
        expected = to_encoder_range(maps[:, None], recipe)
        np.testing.assert_allclose(to_range(torch.from_numpy(maps), recipe), expected, atol=1e-7)


def test_export_codes_as_the_library_does() -> None:
    # Independent answer: the library's own nearest-code search in eval mode.
    torch.manual_seed(0)
    geometry = Geometry(32, 4, 16, 8, 4, 1)
    learner = Learner(geometry, QuantizerConfig(warmup_steps=0))
    learner(torch.rand(8, 1, 32, 32))
    learner.eval()
    x = torch.rand(4, 1, 32, 32)
    features = learner.network.encoder(x)
    _, theirs, _ = learner.quantizers[0](features)
    assert torch.equal(learner.export().encode(x)[:, 0], theirs)


def test_dead_codes_are_revived() -> None:
    torch.manual_seed(0)
    learner = Learner(Geometry(32, 4, 16, 8, 4, 1), QuantizerConfig(warmup_steps=0))
    x = torch.rand(8, 1, 32, 32)
    learner(x)
    book = learner.quantizers[0]._codebook
    book.embed[0, :8] = 1e6  # half of the codes are thrown far away
    book.embed_avg[0, :8] = 1e6
    book.cluster_size[0, :8] = 0
    learner(x)
    assert learner.codebooks().abs().max() < 100


def test_presets_resolve_and_misspelt_settings_name_the_nearest() -> None:
    tokens = {name: resolve_config(name, {}, {}).geometry.num_tokens for name in PRESETS}
    assert tokens == {"debug": 16, "released": 100, "fine": 400, "residual": 200, "embedded": 100}
    with pytest.raises(UserError, match="Did you mean 'batch_size'"):
        resolve_config("debug", {"batchsize": 3}, {})
    with pytest.raises(UserError, match="hold_out_fraction must lie"):
        resolve_config("debug", {}, {"hold_out_fraction": 1.5})
    flags = resolve_config("debug", {"geometry": {"code_dim": 5}}, {"codebook_size": 7})
    assert (flags.geometry.code_dim, flags.geometry.codebook_size, flags.geometry.grid_size) == (
        5,
        7,
        4,
    )


def test_metrics_also_go_to_weights_and_biases_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(
        log=lambda line, step: logged.append({**line, "at": step}), finish=lambda exit_code: None
    )
    fake = SimpleNamespace(init=lambda **_: run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(debug(wandb_project="depth", max_steps=3), tmp_path, resume=False)
    assert [line["at"] for line in logged] == [1, 2, 3, 3]
    assert [{"step": x.pop("at"), **x} for x in logged] == read_metrics(tmp_path / METRICS_FILE)
