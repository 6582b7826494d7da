"""A model server for Ai2's evaluation harness `vla-eval`, which brings LIBERO, SimplerEnv, CALVIN and others.

    pip install vla-eval
    python deploy/vla_eval/molmoact_server.py --port 8000 --args.checkpoint FOLDER --args.benchmark libero

Then point the harness at ws://HOST:8000. Its LIBERO neither crops nor compresses pictures and reads the gripper by
sign, so `benchmark="libero"` does here what MolmoAct was evaluated with: JPEG, crop, and open = -1, closed = +1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    RAW,
    ROTATION_AA,
    DimSpec,
)
from vla_eval.types import Action, Observation

from molmoact_data import policies
from molmoact_robot.environments.libero import LiberoEnv, prepare_picture

BENCHMARKS = ("libero", "plain")
WRIST = "wrist"


class MolmoActModelServer(PredictModelServer):
    """One checkpoint. The harness plays `chunk_size` steps of every answer."""

    def __init__(
        self,
        checkpoint: str,
        benchmark: str = "plain",
        device: str = "auto",
        unnorm_key: str | None = None,
        chunk_size: int | None = None,
    ) -> None:
        """`benchmark`: `libero`, or `plain` for pictures and actions as they are."""
        if benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark is one of {BENCHMARKS}, got {benchmark!r}")
        options = {"device": device, "statistics_key": unnorm_key}
        given = {name: value for name, value in options.items() if value is not None}
        self._policy = policies.load_policy(checkpoint, **given)
        self._libero = benchmark == "libero"
        super().__init__(chunk_size=chunk_size or self._policy.info.horizon)

    def get_observation_params(self) -> dict[str, Any]:
        """What the benchmark is to send beside the first camera."""
        params: dict[str, Any] = {}
        if self._policy.info.num_cameras > 1:
            params["send_wrist_image"] = True
        if self._policy.info.state_dim is not None:
            params["send_state"] = True
        return params

    def get_action_spec(self) -> dict[str, DimSpec]:
        if not self._libero:
            return {"actions": RAW}
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return {"image": IMAGE_RGB, "language": LANGUAGE}

    def predict(self, obs: Observation, ctx: SessionContext) -> Action:
        """One chunk [H, D]. What is no action raises: the harness gets an error message, never a default."""
        images = {name: np.asarray(image, np.uint8) for name, image in obs["images"].items()}
        wanted = dict(sorted(images.items(), key=lambda item: WRIST in item[0]))
        pictures = dict(list(wanted.items())[: self._policy.info.num_cameras])
        if self._libero:
            pictures = {name: prepare_picture(image) for name, image in pictures.items()}
        state = obs.get("states", obs.get("state"))
        observation = policies.Observation(
            images=pictures,
            instruction=str(obs["task_description"]),
            state=None if state is None else np.asarray(state, np.float32),
            episode=ctx.episode_id,
            step=ctx.step,
        )
        actions_HD = self._policy.act(observation).actions_HD
        if self._libero:
            actions_HD = np.stack([LiberoEnv.convention.to_environment(a) for a in actions_HD])
        return {"actions": actions_HD}


if __name__ == "__main__":
    from vla_eval.model_servers.serve import run_server

    run_server(MolmoActModelServer)
