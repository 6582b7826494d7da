"""MolmoAct as a policy: whole answers in the robot's units, and no motion out of a broken model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import cli
from molmoact_data.errors import UserError
from molmoact_data.policies import Observation, Policy, PredictionFailed, load_policy
from molmoact_train.debug.tiny import write_tiny_checkpoint
from molmoact_train.families.molmoact.policy import MolmoActPolicy
from molmoact_train.families.molmoact.predictor import Predictor
from molmoact_train.weights import fingerprint

ACTION = {"q01": [-1.0, -2.0, 0.0], "q99": [1.0, 2.0, 1.0], "mask": [True, True, False]}
STATS = {"robot": {"action": ACTION}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), norm_stats=STATS, seed=3)


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return load_policy(checkpoint, device="cpu", chunk_size=2)


def seen(cameras: int = 2, instruction: str = "lift it") -> Observation:
    rng = np.random.default_rng(0)
    images = {
        f"camera_{i}": rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(cameras)
    }
    return Observation(images=images, instruction=instruction)


def test_a_folder_is_loaded_by_its_model_type(policy: Policy, checkpoint: Path) -> None:
    assert isinstance(policy, MolmoActPolicy)
    assert isinstance(policy, Policy)
    info = policy.info
    assert (info.family, info.action_dim, info.horizon) == ("molmoact", 3, 2)
    assert (info.num_cameras, info.state_dim, info.statistics_key) == (2, None, "robot")
    assert info.sha256 == fingerprint(checkpoint)


def test_an_answer_is_what_predict_gives(policy: MolmoActPolicy, checkpoint: Path) -> None:
    found = policy.act(seen())
    expected = Predictor.from_pretrained(checkpoint, device="cpu").predict(
        list(seen().images.values()), "lift it", options=policy.options
    )
    np.testing.assert_array_equal(found.actions_HD, np.asarray(expected.actions, np.float32))
    assert found.actions_HD.shape == (2, 3)
    assert found.depth_codes is not None
    assert found.depth_codes.tolist() == expected.depth_codes[0]
    assert found.text == expected.text
    policy.reset(seed=5)
    np.testing.assert_array_equal(policy.act(seen()).actions_HD, found.actions_HD)


@pytest.mark.parametrize(
    ("trained", "alone"),
    [
        ({"kind_action": 1.0, "kind_reasoning": 0.0}, True),
        ({"kind_action": 0.5, "kind_reasoning": 0.5}, False),
        ({}, False),
    ],
)  # fmt: skip
def test_a_model_is_asked_for_what_its_run_knew(checkpoint, tmp_path, trained, alone) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "train_config.json").write_text(json.dumps(trained))
    asked = load_policy(folder, device="cpu", chunk_size=2)
    found = asked.act(seen())
    assert found.actions_HD.shape == (2, 3)
    assert (found.depth_codes is None, found.trace_P2 is None) == (alone, alone)
    assert found.text.startswith(" The action that the robot") == alone
    steered = asked.act(seen(), trace=[[10, 20], [200, 220]])
    assert steered.text.startswith(" Based on the image and the annotated trajectory")


def test_a_run_that_cannot_be_is_named(checkpoint, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "train_config.json").write_text(json.dumps({"kind_action": "often"}))
    with pytest.raises(UserError, match=r"train_config\.json: kind_action.*'often'"):
        load_policy(folder, device="cpu")


def test_steered_answers_hold_actions_alone(policy: Policy) -> None:
    found = policy.act(seen(), trace=[[10, 20], [200, 220]])
    assert (found.trace_P2, found.depth_codes) == (None, None)
    assert found.actions_HD.shape == (2, 3)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (seen(cameras=0), "1 to 2 cameras"),
        (seen(cameras=3), "has 3"),
        (seen(instruction="  "), "instruction is empty"),
        (Observation({"front": np.zeros((4, 4, 3), np.float32)}, "go"), "uint8"),  # type: ignore[dict-item]
        (Observation({"front": np.zeros((4, 4), np.uint8)}, "go"), "uint8"),
    ],
)
def test_wrong_questions_are_the_callers_mistake(
    policy: Policy, observation: Observation, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        policy.act(observation)


def test_what_the_run_wrote_down_is_honoured(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    (folder / "train_config.json").write_text(json.dumps({"wording": "reference", "max_images": 1}))
    policy = MolmoActPolicy.from_folder(folder, device="cpu")
    assert (policy.options.wording, policy.info.num_cameras) == ("reference", 1)
    assert policy.info.horizon == 8
    config = json.loads((folder / "config.json").read_text())
    config["norm_stats"]["robot"] |= {"horizon": 3, "cameras": ["a", "b", "c"], "num_arms": 2}
    (folder / "config.json").write_text(json.dumps(config))
    policy = MolmoActPolicy.from_folder(folder, device="cpu")
    assert (policy.info.horizon, policy.info.num_cameras, policy.options.num_arms) == (3, 3, 2)
    config["norm_stats"]["robot"]["horizon"] = "3"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="horizon '3'"):
        MolmoActPolicy.from_folder(folder, device="cpu")


def broken(checkpoint: Path, target: Path, how: str) -> Path:
    """A copy of the checkpoint with its weights spoiled in one way."""
    shutil.copytree(checkpoint, target)
    path = target / "model.safetensors"
    tensors = load_file(path)
    name = "model.transformer.blocks.1.attn_norm.weight"
    assert name in tensors
    if how == "nan":
        tensors[name] = torch.full_like(tensors[name], float("nan"))
    elif how == "one infinity":
        tensors["lm_head.weight"][-1, -1] = float("-inf")
    elif how == "missing":
        del tensors[name]
    elif how == "unknown":
        tensors["model.extra.weight"] = torch.zeros(2)
    elif how == "shape":
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "blocks.1.attn_norm.weight holds NaN"),
        ("one infinity", "lm_head.weight holds NaN or infinity"),
        ("missing", "1 tensors missing"),
        ("unknown", "1 unknown"),
        ("shape", "config.json implies"),
    ],
)
def test_broken_weights_are_one_line_and_never_an_action(
    checkpoint: Path, tmp_path: Path, how: str, message: str
) -> None:
    folder = broken(checkpoint, tmp_path / "model", how)
    with pytest.raises(UserError, match=message):
        load_policy(folder, device="cpu")
    Image.new("RGB", (56, 56), (90, 30, 30)).save(tmp_path / "a.png")
    asked = ["predict", "--checkpoint", str(folder), "--images", str(tmp_path / "a.png")]
    result = CliRunner().invoke(cli.app, [*asked, "--instruction", "x", "--device", "cpu"])
    assert isinstance(result.exception, UserError)
    assert "action" not in result.stdout


def test_numbers_that_break_on_the_way_are_no_answer(checkpoint: Path) -> None:
    """Finite weights whose product is not: what a wrong precision does."""
    policy = MolmoActPolicy.from_folder(checkpoint, device="cpu", chunk_size=1)
    with torch.no_grad():
        policy.predictor.model.lm_head.weight.fill_(1e38)
    with pytest.raises(PredictionFailed, match="not_finite"):
        policy.act(seen())


def test_a_malformed_answer_is_no_motion(checkpoint: Path) -> None:
    """A random model that may write anything writes nonsense."""
    policy = MolmoActPolicy.from_folder(checkpoint, device="cpu", chunk_size=1, constrained=False)
    with pytest.raises(PredictionFailed, match="malformed") as failed:
        policy.act(seen())
    assert failed.value.text
    assert failed.value.reason == "malformed"


def test_a_malformed_answer_is_shown_and_fails(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (56, 56), (90, 30, 30)).save(tmp_path / "a.png")
    asked = [
        "predict",
        "--checkpoint",
        str(checkpoint),
        "--images",
        str(tmp_path / "a.png"),
        "--json",
    ]
    asked += ["--instruction", "x", "--device", "cpu", "--action-chunk-size", "1"]
    result = CliRunner().invoke(cli.app, [*asked, "--unconstrained"])
    assert json.loads(result.stdout)["problems"]
    assert isinstance(result.exception, UserError)
    assert "must not move a robot" in str(result.exception)
    assert CliRunner().invoke(cli.app, asked).exit_code == 0


def test_pictures_that_would_be_clipped_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((56, 56), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    asked = ["predict", "--checkpoint", str(checkpoint), "--images", str(tmp_path / "deep.png")]
    result = CliRunner().invoke(cli.app, [*asked, "--instruction", "x", "--device", "cpu"])
    assert isinstance(result.exception, UserError)
    assert "8-bit" in str(result.exception)
