"""molmoact's table-top world for LeRobot 0.6, which imports every installed distribution of such a name by itself.

    pip install ./deploy/lerobot_env_molmoact_tabletop
    lerobot-eval --policy.path=POLICY --env.type=molmoact_tabletop --env.task=pick,on --eval.n_episodes=10

One task id per family of tasks. Policies see `observation.images.image` (front), `observation.images.image2` (wrist)
and `observation.state` [8], and answer `action` [7].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from molmoact_robot.environments.tabletop import GYM_ID, TabletopEnv
from molmoact_robot.tabletop.control import ACTION_NAMES, CONTROL_HZ, STATE_NAMES
from molmoact_robot.tabletop.tasks import FAMILIES

SUITE = "molmoact_tabletop"


def _features() -> dict[str, PolicyFeature]:
    return {
        ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(len(ACTION_NAMES),)),
        "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(len(STATE_NAMES),)),
        "pixels/image": PolicyFeature(type=FeatureType.VISUAL, shape=(256, 256, 3)),
        "pixels/image2": PolicyFeature(type=FeatureType.VISUAL, shape=(256, 256, 3)),
    }


def _features_map() -> dict[str, str]:
    return {
        ACTION: ACTION,
        "agent_pos": OBS_STATE,
        "pixels/image": f"{OBS_IMAGES}.image",
        "pixels/image2": f"{OBS_IMAGES}.image2",
    }


@EnvConfig.register_subclass(SUITE)
@dataclass
class MolmoactTabletopConfig(EnvConfig):
    """`task`: families with commas; see `molmoact_robot.environments.tabletop.TabletopSettings` for the rest."""

    task: str | None = ",".join(FAMILIES)
    fps: int = CONTROL_HZ
    features: dict[str, PolicyFeature] = field(default_factory=_features)
    features_map: dict[str, str] = field(default_factory=_features_map)
    split: str = "test"
    quality: str = "full"
    image_size: int = 256
    max_steps: int = 120
    gripper: str = "unit"

    def __post_init__(self) -> None:
        for name in ("pixels/image", "pixels/image2"):
            shape = (self.image_size, self.image_size, 3)
            self.features[name] = PolicyFeature(type=FeatureType.VISUAL, shape=shape)

    @property
    def package_name(self) -> str:
        """Registers the environment when it is imported, in LeRobot's worker processes too."""
        return TabletopEnv.__module__

    @property
    def gym_id(self) -> str:
        return GYM_ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        names = ("split", "quality", "image_size", "max_steps", "gripper")
        return {name: getattr(self, name) for name in names}

    def create_envs(
        self,
        n_envs: int,
        use_async_envs: bool = False,  # noqa: FBT001, FBT002 - LeRobot's signature
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """`{suite: {task id: n_envs environments}}`, the ids in the order of `task`."""
        families = [name.strip() for name in (self.task or "").split(",") if name.strip()]
        makers = {
            n: partial(TabletopEnv, task=name, **self.gym_kwargs) for n, name in enumerate(families)
        }
        parallel = use_async_envs and n_envs > 1
        kind = gymnasium.vector.AsyncVectorEnv if parallel else gymnasium.vector.SyncVectorEnv
        more = {"context": "forkserver"} if parallel else {}
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        return {
            SUITE: {
                n: kind([make] * n_envs, autoreset_mode=mode, **more) for n, make in makers.items()
            }
        }
