"""Checkpoints: whole or absent, verified, claimed with permission. The networks are three numbers wide."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from saved_weights import saved_weights
from torch import nn

from molmoact_data.errors import UserError
from molmoact_data.processes import World
from molmoact_train import checkpoint
from molmoact_train.checkpoint import (
    TrainerState,
    claim_run,
    complete_checkpoints,
    load_checkpoint,
    load_config,
    load_trainer_state,
    pinned,
    save_checkpoint,
    verify_checkpoint,
)
from molmoact_train.config import TrainConfig, resolve

ALONE = World(0, 1, torch.device("cpu"))
STATISTICS = {"debug": {"action": {"q01": [0.0]}}}


def config(run: Path, **changes: object) -> TrainConfig:
    given = {"checkpoint": "c", "data": ["d"], "output_path": str(run), **changes}
    return resolve("debug", given)


def trained_net(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(3):
        net(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def state(step: int) -> TrainerState:
    return TrainerState(step, 4 * step, 1, 1, 2, too_long=5)


def save(run: Path, step: int, seed: int = 0, **changes: object) -> nn.Module:
    net, optimizer = trained_net(seed)
    save_checkpoint(run, net, optimizer, state(step), config(run, **changes), STATISTICS, ALONE)
    return net


def test_weights_moments_and_position_come_back(tmp_path: Path) -> None:
    net, optimizer = trained_net(0)
    folder = save_checkpoint(
        tmp_path, net, optimizer, state(7), config(tmp_path), STATISTICS, ALONE
    )
    other, fresh = trained_net(1)
    assert load_checkpoint(folder, other, fresh, config(tmp_path), ALONE) == state(7)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[p][name], fresh.state[q][name])
    assert json.loads((folder / "dataset_statistics.json").read_text()) == STATISTICS


def test_weights_can_be_read_without_a_model(tmp_path: Path) -> None:
    net = save(tmp_path, 1)
    found = saved_weights(complete_checkpoints(tmp_path)[0])
    assert set(found) == set(net.state_dict())
    assert all(torch.equal(found[k], v) for k, v in net.state_dict().items())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        save(tmp_path, step, keep=2)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["step00000009", "step00000012"]
    assert not list(tmp_path.glob("*-tmp"))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_refused_and_the_older_one_named(
    tmp_path: Path, damage: str
) -> None:
    save(tmp_path, 3)
    save(tmp_path, 6)
    newest = tmp_path / "step00000006"
    file = next((newest / "model_and_optim").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-10])
    else:
        file.unlink()
    net, optimizer = trained_net(1)
    with pytest.raises(UserError, match=r"corrupt.*fall back to step00000003"):
        load_checkpoint(newest, net, optimizer, config(tmp_path), ALONE)
    verify_checkpoint(tmp_path / "step00000003")


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_and_the_last_checkpoint_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)
    monkeypatch.setattr(checkpoint.dcp, "save", disk_full)
    with pytest.raises(UserError, match=r"no space left.*last good checkpoint is .*step00000003"):
        save(tmp_path, 6)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["step00000003"]
    assert not list(tmp_path.glob("*-tmp")), "nothing half-written stays behind"
    verify_checkpoint(tmp_path / "step00000003")


def test_too_little_space_is_noticed_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(checkpoint.dcp, "save", lambda *_, **__: pytest.fail("must not write"))
    with pytest.raises(UserError, match="no space left"):
        save(tmp_path, 3)


def test_any_other_write_error_keeps_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.dcp, "save", denied)
    with pytest.raises(UserError, match=r"Input/output error.*there is no checkpoint yet"):
        save(tmp_path, 3)


# Claiming


def test_a_fresh_folder_is_claimed_and_described(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert claim_run(run, config(run), resume=False, overwrite=False) is None
    assert checkpoint.load_config(run) == config(run)


def test_nothing_resumes_or_is_replaced_silently(tmp_path: Path) -> None:
    claim_run(tmp_path, config(tmp_path), resume=False, overwrite=False)
    save(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty.*--resume.*--overwrite"):
        claim_run(tmp_path, config(tmp_path), resume=False, overwrite=False)
    with pytest.raises(UserError, match="one of them"):
        claim_run(tmp_path, config(tmp_path), resume=True, overwrite=True)
    assert claim_run(tmp_path, config(tmp_path), resume=False, overwrite=True) is None
    assert complete_checkpoints(tmp_path) == []
    assert (tmp_path / "notes.txt").read_text() == "mine", "only a run's own files are deleted"


@pytest.mark.parametrize("content", ['{"model_type": "molmoact"}', "{}", "not JSON"])
def test_overwrite_does_not_touch_a_model_that_is_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "final").mkdir()
    with pytest.raises(UserError, match=r"not that of a training run.*--output-path"):
        claim_run(tmp_path, config(tmp_path), resume=False, overwrite=True)
    assert (tmp_path / "config.json").read_text() == content
    assert (tmp_path / "final").is_dir()


def test_resume_needs_a_checkpoint_of_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "notes.txt").write_text("of somebody else")
    with pytest.raises(UserError, match=r"config\.json"):
        claim_run(tmp_path / "strange", config(tmp_path), resume=True, overwrite=False)
    shutil.rmtree(tmp_path / "strange")
    claim_run(tmp_path, config(tmp_path), resume=True, overwrite=False)
    save(tmp_path, 3)
    save(tmp_path, 6)
    found = claim_run(tmp_path, config(tmp_path, keep=9), resume=True, overwrite=False)
    assert found == tmp_path / "step00000006"
    with pytest.raises(UserError, match="different: lr_llm"):
        claim_run(tmp_path, config(tmp_path, lr_llm=1.0), resume=True, overwrite=False)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a config", "half a checkpoint"])
def test_resume_starts_a_run_that_never_came_to_its_first_checkpoint(
    left: str, tmp_path: Path
) -> None:
    """A job that always says --resume must begin; what was half written goes."""
    run = tmp_path / "run"
    if left == "an empty folder":
        run.mkdir()
    if left in ("a config", "half a checkpoint"):
        claim_run(run, config(run), resume=False, overwrite=False)
    if left == "half a checkpoint":
        (run / "step00000003-tmp" / "model_and_optim").mkdir(parents=True)
    assert claim_run(run, config(run), resume=True, overwrite=False) is None
    assert [p.name for p in run.iterdir()] == ["config.json"]
    assert load_config(run) == config(run)
    with pytest.raises(UserError, match="different: lr_llm"):
        claim_run(run, config(run, lr_llm=1.0), resume=True, overwrite=False)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"step": 1}', "[" * 90_000, '{"a": 3}']
)
@pytest.mark.parametrize("name", ["config.json", "trainer.json", "files.json"])
def test_a_damaged_file_of_a_checkpoint_is_one_line(
    name: str, content: str, tmp_path: Path
) -> None:
    save(tmp_path, 3)
    step = tmp_path / "step00000003"
    (step / name).write_text(content)
    read = {
        "config.json": load_config, "trainer.json": load_trainer_state, "files.json": verify_checkpoint,
    }[name]  # fmt: skip
    with pytest.raises(UserError) as met:
        read(step)
    assert "\n" not in str(met.value)


def test_the_commit_of_the_base_model_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch moves; a run that is resumed stays with the commit that it began with."""
    asked: list[str | None] = []

    def hub(name: str, revision: str | None, **_: object) -> str:
        asked.append(revision)
        commit = {None: "b" * 40, "main": "b" * 40}.get(revision, revision)
        folder = tmp_path / "hub" / "snapshots" / str(commit)
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    run = tmp_path / "run"
    first = config(run, checkpoint="lab/base", checkpoint_revision="a" * 40)
    fixed, folder = pinned(first, resume=False)
    assert (fixed.checkpoint_revision, folder.name) == ("a" * 40, "a" * 40)
    claim_run(run, fixed, resume=False, overwrite=False)
    assert json.loads((run / "config.json").read_text())["checkpoint_revision"] == "a" * 40
    again, _ = pinned(config(run, checkpoint="lab/base"), resume=True)
    assert again.checkpoint_revision == "a" * 40
    assert claim_run(run, again, resume=True, overwrite=False) is None
    moved, _ = pinned(config(run, checkpoint="lab/base", checkpoint_revision="main"), resume=True)
    with pytest.raises(UserError, match="different: checkpoint_revision"):
        claim_run(run, moved, resume=True, overwrite=False)
    assert asked == ["a" * 40, "a" * 40, "main"]
    with pytest.raises(UserError, match="is a folder, which has no revision"):
        pinned(config(run, checkpoint=str(tmp_path), checkpoint_revision="main"), resume=False)


def test_an_interrupted_write_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "step00000006-tmp").mkdir()
    (tmp_path / "step00000009").mkdir()  # renamed by hand, or copied in part: no files.json
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["step00000003"]
