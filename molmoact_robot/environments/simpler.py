"""SimplerEnv's policy interface over a `Policy`, and the loop that its evaluators run.

The environment itself (ManiSkill2_real2sim with SAPIEN 2.2.2) renders on a GPU only and is in no package; nothing here
imports it. Put `SimplerPolicy` where its `policy_model` stands, or hand an environment to `run_simpler_episode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.pictures.film import write_video
from molmoact_data.pictures.overlay import draw_trace
from molmoact_data.policies import Observation, Policy

Rgb = NDArray[np.uint8]
Action = Mapping[str, NDArray[np.float64]]
SuccessMode = Literal["truncation", "accumulate", "early-stop"]

IMAGE_SIZE = 256
STICKY_THRESHOLD = 0.5
"""A change of the gripper larger than this starts a sticky stretch on the Google robot."""


@dataclass(frozen=True)
class Setup:
    """One of SimplerEnv's robots."""

    statistics_key: str
    sticky_repeats: int
    """Steps that a gripper change is repeated for; 0 = the gripper is absolute and binary."""
    camera: str


SETUPS: Mapping[str, Setup] = {
    "google_robot": Setup("fractal20220817_data", 15, "overhead_camera"),
    "widowx_bridge": Setup("bridge_orig", 0, "3rd_view_camera"),
}


class SimplerPolicy:
    """`reset(task)`, `step(image, task)`, `visualize_epoch(...)`, positional as SimplerEnv calls them.

    The public adapter un-normalises both robots with the Google robot's statistics; here the policy's statistics must
    be the set-up's own.
    """

    def __init__(
        self,
        policy: Policy,
        policy_setup: str,
        *,
        action_scale: float = 1.0,
        num_returned: Literal[2, 3] = 3,
    ) -> None:
        """`num_returned`: 3 for Ai2's fork (the annotated frame becomes its video), 2 for upstream.

        Raises `UserError` for an unknown set-up and for a policy with another robot's statistics.
        """
        if policy_setup not in SETUPS:
            raise unknown_name("policy set-up", policy_setup, SETUPS)
        self.setup = SETUPS[policy_setup]
        if policy.info.statistics_key != self.setup.statistics_key:
            raise UserError(
                f"{policy_setup} needs actions in the statistics {self.setup.statistics_key!r}; this policy's are "
                f"{policy.info.statistics_key!r}. Load it with --unnorm-key {self.setup.statistics_key}."
            )
        self.policy, self.action_scale, self._num_returned = policy, action_scale, num_returned
        self.task_description = ""
        self._gripper = StickyGripper(self.setup.sticky_repeats)
        self._steps = self._episodes = 0

    def reset(self, task_description: str) -> None:
        """A new episode."""
        self.policy.reset()
        self.task_description = task_description
        self._gripper = StickyGripper(self.setup.sticky_repeats)
        self._steps, self._episodes = 0, self._episodes + 1

    def step(self, image: Rgb, task_description: str | None = None) -> tuple[Any, ...]:
        """RGB uint8 [H, W, 3] -> raw action, action for the environment, and the frame with the trace drawn in.

        Only the first step of a chunk is executed. A changed task begins a new episode. Raises what the policy
        raises: no failure becomes motion.
        """
        if task_description is not None and task_description != self.task_description:
            self.reset(task_description)
        seen = resize(image)
        episode = f"simpler-{self._episodes}"
        chunk = self.policy.act(
            Observation({"image": seen}, self.task_description, episode=episode, step=self._steps)
        )
        self._steps += 1
        values = np.asarray(chunk.actions_HD[0], dtype=np.float64)
        annotated = seen if chunk.trace_P2 is None else draw_trace(seen, chunk.trace_P2)
        return (raw_action(values), self.environment_action(values), annotated)[
            : self._num_returned
        ]

    def environment_action(self, values_7: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """xyz, roll pitch yaw and gripper 0..1 (1 = open), un-normalised -> what the environment takes."""
        return {
            "world_vector": values_7[:3] * self.action_scale,
            "rot_axangle": euler_to_axis_angle(values_7[3:6]) * self.action_scale,
            "gripper": np.array([self._gripper_command(float(values_7[6]))]),
            "terminate_episode": np.array([0.0]),
        }

    def _gripper_command(self, gripper: float) -> float:
        if self.setup.sticky_repeats:
            return self._gripper.command(gripper)
        return 1.0 if gripper > 0.5 else -1.0

    def visualize_epoch(
        self, predicted_raw_actions: Sequence[Action], images: Sequence[Rgb], save_path: str
    ) -> None:
        """The episode's frames as a film at `save_path`, with the raw actions beside it as `.npy` [T, 7]."""
        path = Path(save_path)
        write_video(path.with_suffix(".mp4"), images, fps=5)
        rows = [
            np.concatenate([a["world_vector"], a["rotation_delta"], a["open_gripper"]])
            for a in predicted_raw_actions
        ]
        np.save(path.with_suffix(".npy"), np.stack(rows))


class StickyGripper:
    """The Google robot's gripper: relative, and a large change is repeated so that the fingers arrive."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._previous: float | None = None
        self._stuck_at: float | None = None
        self._repeated = 0

    def command(self, gripper: float) -> float:
        """What was before minus what is asked now; while it sticks, the change that it stuck at."""
        change = 0.0 if self._previous is None else self._previous - gripper
        self._previous = gripper
        if abs(change) > STICKY_THRESHOLD and self._stuck_at is None:
            self._stuck_at = change
        if self._stuck_at is None:
            return change
        stuck = self._stuck_at
        self._repeated += 1
        if self._repeated == self._repeats:
            self._stuck_at, self._repeated = None, 0
        return stuck


def raw_action(values_7: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """A model's values by name."""
    return {
        "world_vector": values_7[:3],
        "rotation_delta": values_7[3:6],
        "open_gripper": values_7[6:7],
    }


def euler_to_axis_angle(roll_pitch_yaw_3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Static x, y, z Euler angles in radians -> axis times angle [3], the angle in 0..pi."""
    half = np.asarray(roll_pitch_yaw_3, dtype=np.float64) / 2
    (cr, cp, cy), (sr, sp, sy) = np.cos(half), np.sin(half)
    w = cr * cp * cy + sr * sp * sy
    vector_3 = np.array(
        [sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy]
    )
    if w < 0:
        w, vector_3 = -w, -vector_3
    length = float(np.linalg.norm(vector_3))
    if length < 1e-12:
        return np.zeros(3)
    return vector_3 / length * 2 * np.arctan2(length, w)


def resize(image_HWC: Rgb) -> Rgb:
    """To 256 x 256 by area, as the checkpoints were evaluated; no crop."""
    import cv2

    size = (IMAGE_SIZE, IMAGE_SIZE)
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


class SimplerWorld(Protocol):
    """The calls that SimplerEnv's evaluators make."""

    def reset(self, *, options: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]: ...

    def step(self, action: NDArray[np.float64]) -> tuple[Any, float, bool, bool, Any]: ...

    def get_language_instruction(self) -> str: ...

    def is_final_subtask(self) -> bool: ...

    def advance_to_next_subtask(self) -> None: ...


@dataclass(frozen=True)
class SimplerEpisode:
    """What happened, and by which rule it counts."""

    success: bool
    mode: SuccessMode
    steps: int
    ever_done: bool


def run_simpler_episode(
    environment: SimplerWorld,
    policy: SimplerPolicy,
    *,
    options: Mapping[str, Any],
    mode: SuccessMode = "truncation",
    image_of: Any = None,
) -> SimplerEpisode:
    """Until it is truncated, or done in its last sub-task.

    `mode` decides what counts, and one policy scores very differently by it: `truncation` = done at the last step
    (SimplerEnv's own rule), `accumulate` = done at any step, `early-stop` = stop when done.
    """
    look = image_of or (lambda seen: seen["image"][policy.setup.camera]["rgb"])
    seen, _ = environment.reset(options=options)
    policy.reset(environment.get_language_instruction())
    done = ever_done = over = False
    steps = 0
    while not over:
        action = policy.step(look(seen), environment.get_language_instruction())[1]
        command = [action["world_vector"], action["rot_axangle"], action["gripper"]]
        seen, _, done, truncated, _ = environment.step(np.concatenate(command))
        steps, ever_done = steps + 1, ever_done or done
        final = environment.is_final_subtask()
        if done and not final:
            environment.advance_to_next_subtask()
        over = truncated or (done and final and mode == "early-stop")
    success = done if mode == "truncation" else ever_done
    return SimplerEpisode(bool(success), mode, steps, bool(ever_done))
