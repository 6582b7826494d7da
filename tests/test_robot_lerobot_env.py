"""The table-top world in LeRobot's own evaluation, as it stands."""

from __future__ import annotations

import os
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
