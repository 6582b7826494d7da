"""LeRobot's own MolmoAct2 policy reads what we write, and we go on with what it wrote: real classes, tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from golden_molmoact2 import FOLDER, RELATIVE, TINY, arrays, needs_molmoact2
from made_outputs import DotSource, write_output

from molmoact_data.errors import UserError
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.policies import Observation
from molmoact_train.config import resolve
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.families.molmoact2.lerobot import from_lerobot, is_lerobot, to_lerobot
from molmoact_train.families.molmoact2.policy import MolmoAct2Policy
from molmoact_train.train import train
from molmoact_train.weights import WeightFiles

pytest.importorskip("lerobot.policies.molmoact2")
pytestmark = needs_molmoact2
TASK = "Put the bowl on the plate."


def pictures(count: int = 2) -> list[np.ndarray]:
    sample = arrays("training_sample.npz")
    return [sample[f"image_{j}"][0] for j in range(count)]


def theirs(folder: Path) -> tuple[Any, Any, Any]:
    """LeRobot's policy and pipelines from a folder in its layout."""
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy as Peer
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import (
        policy_action_to_transition,
        transition_to_policy_action,
    )

    before = PolicyProcessorPipeline.from_pretrained(
        str(folder), config_filename="policy_preprocessor.json"
    )
    after = PolicyProcessorPipeline.from_pretrained(
        str(folder),
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return Peer.from_pretrained(str(folder)).eval(), before, after


def ask(peer: tuple[Any, Any, Any], keys: list[str], state: np.ndarray, seed: int) -> np.ndarray:
    """A chunk from LeRobot's policy, robot units, noise from a seed."""
    policy, before, after = peer
    frame: dict[str, Any] = {"observation.state": torch.from_numpy(state), "task": TASK}
    for key, rgb in zip(keys, pictures(), strict=True):
        frame[key] = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        chunk = policy.predict_action_chunk(
            before(frame), generator=torch.Generator().manual_seed(seed)
        )
    return after(chunk)[0].numpy()


def ours(folder: Path, state: np.ndarray, seed: int, tag: str | None = None) -> np.ndarray:
    policy = MolmoAct2Policy.from_folder(
        folder, statistics_key=tag, device="cpu", seed=seed, think=False
    )
    images = dict(zip("ab", pictures(), strict=True))
    return policy.act(Observation(images, TASK, state)).actions_HD


def test_what_we_trained_acts_the_same_in_lerobots_policy(tmp_path: Path) -> None:
    """A new robot with state, three steps of both losses, exported to LeRobot's layout."""
    data = write_debug_dataset(tmp_path / "data", state_dim=8, chunk_size=5, name="lab/arm")
    config = resolve(
        "debug",
        {
            "family": "molmoact2", "checkpoint": str(TINY), "data": [str(data)], "duration": 3,
            "output_path": str(tmp_path / "run"), "action_tokenizer": str(FOLDER / "fast"),
            "normalize_gripper": True,
        },
    )  # fmt: skip
    final = train(config, device="cpu").folder
    to_lerobot(str(final), tmp_path / "theirs", tag="lab/arm")
    assert is_lerobot(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    settings |= {
        "discrete_action_tokenizer": str(FOLDER / "fast"),
        "enable_inference_cuda_graph": False,
    }
    use_golden_tokenizer(tmp_path / "theirs")
    peer = theirs(tmp_path / "theirs")
    keys = settings["image_keys"]
    assert keys == ["observation.images.front", "observation.images.wrist"]
    tag = MolmoAct2Policy.from_folder(final, statistics_key="lab/arm", device="cpu").tag
    assert tag.state is not None
    state = tag.state.values["mean"]
    found, expected = ask(peer, keys, state, 5), ours(final, state, 5, "lab/arm")
    assert found.shape == expected.shape == (5, 7)
    assert np.abs(found - expected).max() < RELATIVE * np.abs(expected).max()
    stored, loaded = WeightFiles(final), peer[0].state_dict()
    for name in stored.names():
        assert torch.equal(loaded[f"model.{name}"], stored.read(name)), name


def test_the_released_layout_acts_the_same_in_lerobots_policy(tmp_path: Path) -> None:
    """The golden checkpoint and its `libero` tag, through LeRobot's layout as we write it."""
    to_lerobot(str(TINY), tmp_path / "theirs", tag="libero")
    use_golden_tokenizer(tmp_path / "theirs")
    peer = theirs(tmp_path / "theirs")
    keys = ["observation.images.image", "observation.images.wrist_image"]
    state = arrays("sampling.npz")["predict_raw_state"]
    found, expected = ask(peer, keys, state, 3), ours(TINY, state, 3, "libero")
    assert np.abs(found - expected).max() < RELATIVE * np.abs(expected).max()

    # A few steps of LeRobot's own trainer's loss and optimiser groups, saved by LeRobot, read and continued by us.
    policy, before, _ = peer
    policy.train()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    sample = arrays("training_sample.npz")
    frame: dict[str, Any] = {
        "observation.state": torch.from_numpy(state)[None], "task": [TASK],
        "action": torch.from_numpy(sample["actions_normalised"][:1, :10].copy()),
        "action_is_pad": torch.zeros(1, 10, dtype=torch.bool),
    }  # fmt: skip
    for key, rgb in zip(keys, pictures(), strict=True):
        frame[key] = torch.from_numpy(rgb).permute(2, 0, 1).float()[None] / 255
    batch = before(frame)
    for _ in range(2):
        loss, _ = policy.forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval().save_pretrained(str(tmp_path / "saved"))
    for name in ("policy_preprocessor", "policy_postprocessor"):
        for path in (tmp_path / "theirs").glob(f"{name}*"):
            (tmp_path / "saved" / path.name).write_bytes(path.read_bytes())
    done = from_lerobot(tmp_path / "saved", tmp_path / "released")
    assert done.num_tensors == len(WeightFiles(TINY).names())
    moved = ours(tmp_path / "released", state, 3, "libero")
    assert np.abs(moved - expected).max() > 1e-4, "two steps changed it"
    found = ask(theirs(tmp_path / "saved"), keys, state, 3)
    assert np.abs(found - moved).max() < RELATIVE * np.abs(moved).max()

    # Ours goes on: the released folder is a checkpoint like any other.
    data = write_debug_dataset(tmp_path / "data", state_dim=8, chunk_size=12, frames=14, name="d")
    config = resolve(
        "debug",
        {
            "family": "molmoact2", "checkpoint": str(tmp_path / "released"), "data": [str(data)], "duration": 1,
            "output_path": str(tmp_path / "run"), "action_mode": "continuous", "tags": ["d=libero"],
        },
    )  # fmt: skip
    final = train(config, device="cpu").folder
    again = MolmoAct2Policy.from_folder(final, statistics_key="libero", device="cpu").tag
    kept = MolmoAct2Policy.from_folder(TINY, statistics_key="libero", device="cpu").tag
    np.testing.assert_array_equal(again.action.values["q99"], kept.action.values["q99"])


def test_lerobots_code_trains_on_the_companion_with_exact_quantiles(
    tmp_path: Path, molmoact: Callable[..., tuple[int, str, str]]
) -> None:
    """Preprocessed and exported by command; read by LeRobotDataset, normalised and trained on by its MolmoAct2."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.molmoact2.configuration_molmoact2 import MolmoAct2Config as PeerConfig
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy as Peer
    from lerobot.policies.molmoact2.processor_molmoact2 import make_molmoact2_pre_post_processors

    write_output(tmp_path / "dots", DotSource(lengths=(12, 9, 11)))
    dataset, out, companion = tmp_path / "d", tmp_path / "out", tmp_path / "d_depth"
    assert (
        molmoact("export", tmp_path / "dots", "--format", "lerobot", "--output-path", dataset)[0]
        == 0
    )
    spoil_quantiles(dataset / "meta" / "stats.json")
    made = ["--preset", "debug", "--output-path", out]
    assert molmoact("preprocess", "--dataset-path", dataset, *made)[0] == 0
    form = ["--format", "molmoact2-depth", "--dataset-path", dataset, "--output-path", companion]
    assert molmoact("export", out, *form)[0] == 0

    loaded = LeRobotDataset(
        "local/d_depth", root=companion, delta_timestamps={"action": [n / 10 for n in range(8)]}
    )
    rows = pq.read_table(companion / "data")
    every = fixed_array(rows["action"]).astype(np.float64)
    for name, share in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        exact = np.quantile(every, share, axis=0)
        np.testing.assert_allclose(loaded.meta.stats["action"][name], exact, rtol=1e-12)
    stored = pq.read_table(out / "data", columns=["buffer_codes", "depth_updated_mask"])
    keys = [k for k in loaded.meta.features if k.startswith("observation.images.")]
    visual = {k: PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for k in keys}
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (3,))}
    config = PeerConfig(
        checkpoint_path=str(TINY), model_dtype="float32", device="cpu", action_mode="both", chunk_size=8,
        n_action_steps=8, num_flow_timesteps=2, enable_inference_cuda_graph=False, image_keys=keys,
        setup_type="a robot", control_mode="deltas", discrete_action_tokenizer=str(FOLDER / "fast"),
        normalize_gripper=True, input_features={**visual, **state},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    )  # fmt: skip
    before, _ = make_molmoact2_pre_post_processors(config, loaded.meta.stats, loaded.meta)
    batch = next(iter(torch.utils.data.DataLoader(loaded, batch_size=2)))
    for name in ("buffer_codes", "depth_updated_mask"):
        assert batch[name].tolist() == stored[name].to_pylist()[:2]
    low, high = np.quantile(every, 0.01, axis=0), np.quantile(every, 0.99, axis=0)
    normalised = np.clip(2 * (batch["action"].numpy() - low) / (high - low) - 1, -1, 1)
    given = before(batch)
    np.testing.assert_allclose(given["action"][:, :8, :7].numpy(), normalised, atol=1e-5)
    loss, _ = Peer(config).train().forward(given)
    loss.backward()
    assert torch.isfinite(loss)


def spoil_quantiles(path: Path) -> None:
    """A source whose statistics are estimates."""
    statistics = json.loads(path.read_text())
    statistics["action"]["q99"] = [9.0] * 7
    path.write_text(json.dumps(statistics))


def use_golden_tokenizer(folder: Path) -> None:
    """The golden FAST tokenizer instead of the Hub's; no CUDA graphs."""
    for name in ("config.json", "policy_preprocessor.json"):
        fields = json.loads((folder / name).read_text())
        targets = [fields] if name == "config.json" else [s["config"] for s in fields["steps"]]
        for target in targets:
            if "discrete_action_tokenizer" in target:
                target["discrete_action_tokenizer"] = str(FOLDER / "fast")
        if name == "config.json":
            fields["enable_inference_cuda_graph"] = False
        (folder / name).write_text(json.dumps(fields))


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows several robots"):
        to_lerobot(str(TINY), tmp_path / "out")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "config.json").write_text(
        json.dumps({"type": "molmoact2", "checkpoint_path": str(TINY)})
    )
    with pytest.raises(UserError, match="missing or damaged"):
        from_lerobot(saved, tmp_path / "out")
