"""The table-top world in LeRobot's own evaluation, as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_gl import needs_gl

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "deploy/lerobot_env_molmoact_tabletop"
lerobot_eval = pytest.importorskip("lerobot.scripts.lerobot_eval", reason="needs LeRobot 0.6")

SMALL = {"quality": "flat", "image_size": 64}


@pytest.fixture(scope="module")
def plugin():
    sys.path.insert(0, str(PLUGIN))
    import lerobot_env_molmoact_tabletop

    yield lerobot_env_molmoact_tabletop
    sys.path.remove(str(PLUGIN))


class Expert(torch.nn.Module):
    """What the environment's own script would do, as a LeRobot policy; looks at LeRobot's observation."""

    def __init__(self, vector) -> None:
        super().__init__()
        self.vector, self.seen = vector, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def reset(self) -> None:
        self.scripts = None

    def select_action(self, batch):
        if self.scripts is None:
            self.scripts = [env.unwrapped.expert_actions for env in self.vector.envs]
        self.seen.append(batch)
        idle = np.array([0, 0, 0, 0, 0, 0, 0], np.float32)
        return torch.from_numpy(np.stack([next(s, idle) for s in self.scripts]))


@needs_gl
def test_lerobots_rollout_sees_success_and_observations_in_its_own_terms(plugin) -> None:
    from lerobot.envs import make_env
    from lerobot.processor import PolicyProcessorPipeline

    config = plugin.MolmoactTabletopConfig(task="pick,turn", max_steps=50, **SMALL)
    environments = make_env(config, n_envs=2)
    assert list(environments["molmoact_tabletop"]) == [0, 1]
    vector = environments["molmoact_tabletop"][0]
    policy = Expert(vector)
    nothing = PolicyProcessorPipeline(steps=[], to_transition=lambda x: x, to_output=lambda x: x)
    found = lerobot_eval.rollout(vector, policy, *[nothing] * 4, seeds=[0, 1])
    assert found["success"].any(dim=1).tolist() == [True, True]
    batch = policy.seen[0]
    assert batch["observation.images.image"].shape == (2, 3, 64, 64)
    assert batch["observation.images.image2"].max() <= 1
    assert batch["observation.state"].shape == (2, 8)
    assert all(text.startswith("pick up the ") for text in batch["task"])
    for each in environments["molmoact_tabletop"].values():
        each.close()


@needs_gl
def test_in_processes_of_their_own_each_makes_its_own_opengl(plugin, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{PLUGIN}")
    config = plugin.MolmoactTabletopConfig(task="pick", max_steps=3, **SMALL)
    vector = config.create_envs(2, use_async_envs=True)["molmoact_tabletop"][0]
    first, _ = vector.reset(seed=[0, 1])
    assert first["pixels"]["image"].shape == (2, 64, 64, 3)
    assert (first["pixels"]["image"][0] != first["pixels"]["image"][1]).any()
    for _ in range(3):
        *_, truncated, info = vector.step(np.zeros((2, 7), np.float32))
    assert truncated.all()
    assert info["final_info"]["is_success"].tolist() == [False, False]
    assert vector.call("_max_episode_steps") == (3, 3)
    vector.close()


@needs_gl
def test_lerobot_eval_itself_runs_on_it(plugin, tmp_path) -> None:
    """The program of the name, with a small untrained policy of LeRobot's: it knows the environment by its type."""
    from lerobot.envs.utils import env_to_policy_features
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    config = plugin.MolmoactTabletopConfig(task="pick", **SMALL)
    features = env_to_policy_features(config)
    act = ACTConfig(
        input_features={k: f for k, f in features.items() if k != "action"},
        output_features={"action": features["action"]},
        pretrained_backbone_weights=None, dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1,
        n_vae_encoder_layers=1, chunk_size=4, n_action_steps=4, device="cpu", push_to_hub=False,
    )  # fmt: skip
    statistics = {
        name: {"mean": torch.zeros(f.shape[:1]), "std": torch.ones(f.shape[:1])}
        for name, f in features.items()
        if "images" not in name
    }
    for name in features:
        if "images" in name:
            statistics[name] = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
    ACTPolicy(act).save_pretrained(tmp_path / "policy")
    for pipeline in make_pre_post_processors(act, dataset_stats=statistics):
        pipeline.save_pretrained(tmp_path / "policy")
    arguments = [
        f"--policy.path={tmp_path / 'policy'}", "--env.type=molmoact_tabletop",
        "--env.discover_packages_path=lerobot_env_molmoact_tabletop", "--env.task=pick,turn",
        "--env.quality=flat", "--env.image_size=64", "--env.max_steps=4", "--eval.n_episodes=1",
        "--eval.batch_size=1", f"--output_dir={tmp_path / 'out'}", "--policy.device=cpu",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGIN}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lerobot.scripts.lerobot_eval", *arguments],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out/eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == 2
    assert len(found["per_task"]) == 2
