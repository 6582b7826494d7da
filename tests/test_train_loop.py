"""The training loop on a tiny model: it learns, stops, resumes to the last bit, and refuses what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_weights import saved_weights

from molmoact_data.errors import UserError
from molmoact_data.runs import read_metrics
from molmoact_train import train as loop
from molmoact_train.checkpoint import complete_checkpoints
from molmoact_train.config import TrainConfig, resolve
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.folders.merge import merge_lora

SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_tiny_checkpoint(folder / "checkpoint", SIZE)
    write_debug_dataset(folder / "data", episodes=4, frames=5, size=56, chunk_size=2)
    return folder


def config(base: Path, run: Path, **changes: Any) -> TrainConfig:
    """Dropout is on and pictures are augmented: what a resume must reproduce."""
    given = {
        "checkpoint": str(base / "checkpoint"),
        "data": [str(base / "data")],
        "output_path": str(run),
        "img_aug": True,
        "eval_generate": 0,
    }
    return resolve("debug", given, changes)


def losses(run: Path) -> dict[int, float]:
    """Exact training losses by step."""
    lines = read_metrics(run / "metrics.jsonl")
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.fixture(scope="module")
def whole_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without interruption, with held-out evaluation."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    outcome = loop.train(config(base, run, eval_fraction=0.25), device="cpu")
    assert (outcome.step, outcome.finished) == (6, True)
    return run


def test_a_run_leaves_everything_it_promises(base: Path, whole_run: Path) -> None:
    assert [p.name for p in complete_checkpoints(whole_run)] == ["step00000003", "step00000006"]
    assert (whole_run / "metrics.png").stat().st_size > 1000
    lines = read_metrics(whole_run / "metrics.jsonl")
    evaluated = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in evaluated] == [3, 6]
    for part in ("depth", "trace", "action"):
        assert f"eval/loss_{part}" in evaluated[-1]
        assert 0 <= evaluated[-1][f"eval/accuracy_{part}"] <= 1
    assert all(0 < value < 10 for value in losses(whole_run).values())
    trained = [line for line in lines if "train/loss" in line]
    assert trained[0]["lr/llm"] == pytest.approx(1e-3 / 2), "warm-up of two steps"
    assert trained[-1]["lr/llm"] == pytest.approx(1e-4), "a tenth of the base rate at the end"
    stats = json.loads((whole_run / "dataset_statistics.json").read_text())
    exported = json.loads((whole_run / "final" / "config.json").read_text())
    assert exported["norm_stats"] == stats
    assert list(stats) == ["debug/square"]


def test_the_final_export_is_the_trained_model(base: Path, whole_run: Path) -> None:
    """The independent answer is the checkpoint, read without the model."""
    weights = saved_weights(whole_run / "step00000006")
    exported = load_file(whole_run / "final" / "model.safetensors")
    start = load_file(base / "checkpoint" / "model.safetensors")
    assert set(exported) == set(weights) == set(start)
    assert all(torch.equal(exported[name], weights[name]) for name in weights)
    assert any(not torch.equal(exported[name], start[name]) for name in weights)
    model = MolmoActForActionReasoning.from_pretrained(whole_run / "final")
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.train_step

    def dying(*args: Any, **kwargs: Any) -> dict[str, float]:
        if args[6] == step:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", dying)


def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(
    base: Path, whole_run: Path, tmp_path: Path
) -> None:
    """Killed at step 5, resumed from the checkpoint of step 3: steps 4 to 6 are done again, equally."""
    run = tmp_path / "run"
    settings = config(base, run, eval_fraction=0.25)
    with pytest.MonkeyPatch.context() as patch:
        killed_at(5, patch)
        with pytest.raises(Killed):
            loop.train(settings, device="cpu")
    assert [p.name for p in complete_checkpoints(run)] == ["step00000003"]
    loop.train(settings, resume=True, device="cpu")
    assert losses(run) == losses(whole_run)
    ours, theirs = (load_file(r / "final" / "model.safetensors") for r in (run, whole_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_sigterm_saves_and_resuming_goes_on_exactly(
    base: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    settings = config(base, run, eval_fraction=0.25)
    real = loop.train_step

    def terminated(*args: Any, **kwargs: Any) -> dict[str, float]:
        if args[6] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", terminated)
    outcome = loop.train(settings, device="cpu")
    assert (outcome.step, outcome.finished) == (2, False)
    assert outcome.signal == signal.SIGTERM
    assert outcome.folder == run / "step00000002"
    assert not (run / "final").exists()
    monkeypatch.setattr(loop, "train_step", real)
    assert loop.train(settings, resume=True, device="cpu").finished
    assert losses(run) == losses(whole_run)


def test_a_loss_that_is_not_finite_stops_before_anything_is_updated(
    base: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(base / "checkpoint", tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.transformer.ln_f.weight"] *= 1e38  # finite, but its products are not
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run = tmp_path / "run"
    stepped = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self: stepped.append(1))
        with pytest.raises(UserError, match=r"loss is (nan|inf) at step 1 .*Nothing was updated"):
            loop.train(config(base, run, checkpoint=str(broken)), device="cpu")
    assert not stepped
    assert complete_checkpoints(run) == []


@pytest.mark.parametrize(
    ("choice", "frozen"),
    [
        ("lm_head", {"model.transformer.wte.embedding"}),
        ("ln_f", {"model.transformer.wte.embedding", "lm_head.weight"}),
        ("wte", {"model.transformer.ln_f.weight", "lm_head.weight"}),
    ],
)
def test_exactly_the_frozen_weights_stay(
    base: Path, tmp_path: Path, choice: str, frozen: set[str]
) -> None:
    """What the update really changed, tensor by tensor, against the checkpoint it started from."""
    run = tmp_path / "run"
    settings = config(
        base, run, ft_embedding=choice, duration=1, lr_scheduler="constant", data_seed=1
    )
    loop.train(settings, device="cpu")
    before = load_file(base / "checkpoint" / "model.safetensors")
    after = load_file(run / "final" / "model.safetensors")
    same = {n for n in before if torch.equal(before[n], after[n])}
    # The gradient of a random image encoder is around 1e-10: some of it vanishes beside a norm of 1.
    assert {n for n in same if ".image_vit.transformer." not in n} == frozen


def test_lora_run_leaves_an_adapter_and_the_base_alone(base: Path, tmp_path: Path) -> None:
    """Merged by PEFT itself, the adapter gives the logits of the trained model with adapters on."""
    from peft import PeftModel

    run = tmp_path / "run"
    settings = config(base, run, lora=True, lora_rank=4, duration=3, activation_checkpointing=True)
    outcome = loop.train(settings, device="cpu")
    names = {p.name for p in outcome.folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert {"dataset_statistics.json", "train_config.json"} <= names
    plain = MolmoActForActionReasoning.from_pretrained(base / "checkpoint").eval()
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        start = plain(input_ids=ids).logits
        on = PeftModel.from_pretrained(plain, str(outcome.folder)).eval()
        trained = on(input_ids=ids).logits
        merged = on.merge_and_unload()
        assert not torch.equal(trained, start)
        assert torch.allclose(merged(input_ids=ids).logits, trained, atol=1e-5)
        merge_lora(outcome.folder, tmp_path / "whole", base=str(base / "checkpoint"))
        whole = MolmoActForActionReasoning.from_pretrained(tmp_path / "whole").eval()
        assert torch.allclose(whole(input_ids=ids).logits, trained, atol=1e-5)
    resumed = loop.train(settings, resume=True, device="cpu")
    assert resumed.step == 3


def test_wrong_input_is_refused_before_the_run_is_touched(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="no such folder, and not a Hub id"):
        loop.train(config(base, run, checkpoint=str(tmp_path / "a" / "b")), device="cpu")
    with pytest.raises(UserError, match="not a multiple of device batch"):
        loop.check_batch_arithmetic(4, 3, 1)
    other = write_tiny_checkpoint(
        tmp_path / "arm3", SIZE, norm_stats={"arm": {"action": {"q01": [0] * 3, "q99": [1] * 3}}}
    )
    with pytest.raises(UserError, match=r"7 action dimensions.*3 \(arm\).*--new-action-dim"):
        loop.train(config(base, run, checkpoint=str(other)), device="cpu")
    assert not run.exists()


def test_a_damaged_start_checkpoint_is_named(base: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(base / "checkpoint", tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors missing \(lm_head.weight\)"):
        loop.train(config(base, tmp_path / "run", checkpoint=str(broken)), device="cpu")
    (broken / "model.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(UserError, match="missing or damaged"):
        loop.train(config(base, tmp_path / "run2", checkpoint=str(broken)), device="cpu")
