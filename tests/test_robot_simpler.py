"""SimplerEnv: the adapter against the public class's own numbers, and the evaluator's loop on a made environment."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
from golden import GOLDEN, needs_golden
from made_worlds import FunctionPolicy
from scipy.spatial.transform import Rotation

from molmoact_data.errors import UserError
from molmoact_data.policies import ActionChunk, PredictionFailed
from molmoact_data.text import prompts
from molmoact_robot.environments.simpler import (
    SETUPS,
    SimplerPolicy,
    StickyGripper,
    euler_to_axis_angle,
    run_simpler_episode,
)

ADAPTER = GOLDEN / "closed-loop/simplerenv_adapter.json"
IMAGE = np.random.default_rng(0).integers(0, 256, (512, 640, 3), np.uint8)


def adapter(actions, setup="google_robot", **more) -> SimplerPolicy:
    """Over a policy that answers the given actions one after the other."""
    rows = iter(actions)

    def answer(observation):
        row = np.asarray(next(rows))
        return ActionChunk(row[None].astype(np.float32))

    key = SETUPS[setup].statistics_key
    policy = FunctionPolicy(answer, statistics_key=key, action_dim=7)
    return SimplerPolicy(policy, setup, **more)


@needs_golden
@pytest.mark.parametrize("number", range(6))
def test_the_environments_action_is_that_of_the_public_adapter(number) -> None:
    """From the same un-normalised values; rotations of zero, one axis and large ones, a gripper that jumps."""
    episode = json.loads(ADAPTER.read_text())[number]
    policy = adapter([], episode["policy_setup"])
    policy.reset("x")
    for values, expected, terminate in zip(
        episode["action"], episode["env_action"], episode["terminate"], strict=True
    ):
        got = policy.environment_action(np.array(values, np.float64))
        sent = np.concatenate([got["world_vector"], got["rot_axangle"], got["gripper"]])
        np.testing.assert_allclose(sent, expected, atol=1e-9)
        assert got["terminate_episode"].tolist() == [terminate]


@needs_golden
def test_sizes_stickiness_and_prompt_are_the_public_ones() -> None:
    for episode in json.loads(ADAPTER.read_text()):
        setup = SETUPS[episode["policy_setup"]]
        policy = adapter([np.zeros(7)], episode["policy_setup"])
        task = f"pick coke can {episode['episode']}"
        policy.reset(task)
        policy.step(IMAGE, task)
        seen = policy.policy.observations[0]
        assert list(seen.images["image"].shape[:2]) == episode["model_image_size"]
        assert prompts.question(seen.instruction, "reasoning", 1) == episode["prompt"]
        if setup.sticky_repeats:
            assert setup.sticky_repeats == episode["sticky_gripper_num_repeat"]


def test_statistics_follow_the_setup_unlike_in_the_public_class() -> None:
    assert SETUPS["google_robot"].statistics_key == "fractal20220817_data"
    assert SETUPS["widowx_bridge"].statistics_key == "bridge_orig"
    wrong = FunctionPolicy(lambda _: None, statistics_key="fractal20220817_data", action_dim=7)
    with pytest.raises(UserError, match="--unnorm-key bridge_orig"):
        SimplerPolicy(wrong, "widowx_bridge")
    with pytest.raises(UserError, match="Did you mean 'widowx_bridge'"):
        SimplerPolicy(wrong, "widowx_brige")


def test_rotations_equal_scipys() -> None:
    for angles in np.random.default_rng(1).uniform(-1.5, 1.5, (50, 3)):
        expected = Rotation.from_euler("xyz", angles).as_rotvec()
        np.testing.assert_allclose(euler_to_axis_angle(angles), expected, atol=1e-12)
    np.testing.assert_array_equal(euler_to_axis_angle(np.zeros(3)), 0)


def test_a_gripper_change_sticks_for_fifteen_steps_and_no_longer() -> None:
    gripper = StickyGripper(15)
    commands = [gripper.command(g) for g in [1.0, 0.0, *[0.0] * 20]]
    assert commands == [0.0, *[1.0] * 15, *[0.0] * 6]


def test_step_returns_what_the_fork_and_what_upstream_expect() -> None:
    raw, action, frame = adapter([np.arange(7) / 10]).step(IMAGE, "pick")
    assert {name: value.shape for name, value in raw.items()} == {
        "world_vector": (3,), "rotation_delta": (3,), "open_gripper": (1,),
    }  # fmt: skip
    assert set(action) == {"world_vector", "rot_axangle", "gripper", "terminate_episode"}
    assert frame.shape == (256, 256, 3)
    assert len(adapter([np.zeros(7)], num_returned=2).step(IMAGE, "pick")) == 2


def test_another_task_begins_anew_and_a_failure_is_raised() -> None:
    policy = adapter([[0] * 6 + [1], [0] * 6 + [0], [0] * 7])
    grippers = [policy.step(IMAGE, task)[1]["gripper"][0] for task in ("a", "a", "b")]
    assert grippers == [0.0, 1.0, 0.0], "the sticky gripper is forgotten"
    assert [o.step for o in policy.policy.observations] == [0, 1, 0]

    def fail(observation):
        raise PredictionFailed("bad_text", "no")

    key = SETUPS["google_robot"].statistics_key
    with pytest.raises(PredictionFailed):
        SimplerPolicy(FunctionPolicy(fail, statistics_key=key), "google_robot").step(IMAGE, "a")


def test_visualize_epoch_leaves_a_film_and_the_actions(tmp_path) -> None:
    policy = adapter(np.arange(21).reshape(3, 7) / 100)
    steps = [policy.step(IMAGE, "pick") for _ in range(3)]
    policy.visualize_epoch([s[0] for s in steps], [s[2] for s in steps], str(tmp_path / "e.png"))
    np.testing.assert_allclose(
        np.load(tmp_path / "e.npy"), np.arange(21).reshape(3, 7) / 100, atol=1e-7
    )
    with av.open(str(tmp_path / "e.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 3


class MadeSimpler:
    """The real five calls. Done at the steps given; two sub-tasks where asked."""

    def __init__(self, done_at, length=6, subtasks=1) -> None:
        self.done_at, self.length, self.left = set(done_at), length, subtasks - 1
        self.actions: list[np.ndarray] = []
        self.options = None

    def reset(self, *, options):
        self.options = options
        return self._seen(), {}

    def step(self, action):
        self.actions.append(action)
        n = len(self.actions)
        return self._seen(), 0.0, n in self.done_at, n >= self.length, {}

    def get_language_instruction(self):
        return f"task with {self.left} to come"

    def is_final_subtask(self):
        return self.left == 0

    def advance_to_next_subtask(self):
        self.left -= 1

    def _seen(self):
        return {"image": {"overhead_camera": {"rgb": IMAGE}}}


@pytest.mark.parametrize(
    ("mode", "done_at", "success", "steps"),
    [("truncation", [3], False, 6), ("truncation", [3, 6], True, 6), ("accumulate", [3], True, 6),
     ("early-stop", [3], True, 3), ("early-stop", [], False, 6)],
)  # fmt: skip
def test_what_counts_as_success_is_a_choice_that_is_kept(mode, done_at, success, steps) -> None:
    world = MadeSimpler(done_at)
    found = run_simpler_episode(
        world,
        adapter(np.zeros((9, 7))),
        options={"obj_init_options": {"init_xy": (0, 0)}},
        mode=mode,
    )
    assert (found.success, found.steps, found.mode) == (success, steps, mode)
    assert world.options == {"obj_init_options": {"init_xy": (0, 0)}}
    assert all(action.shape == (7,) for action in world.actions)


def test_a_subtask_that_is_done_leads_to_the_next() -> None:
    world, policy = MadeSimpler([2, 5], subtasks=2), adapter(np.zeros((9, 7)))
    found = run_simpler_episode(world, policy, options={}, mode="early-stop")
    assert (found.success, found.steps) == (True, 5)
    instructions = [o.instruction for o in policy.policy.observations]
    assert instructions == ["task with 1 to come"] * 2 + ["task with 0 to come"] * 3
