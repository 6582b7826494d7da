"""The table-top world as gymnasium, LeRobot and `molmoact eval` see it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from made_gl import needs_gl
from made_worlds import FunctionPolicy

from molmoact_data.errors import UserError
from molmoact_data.policies import ActionChunk
from molmoact_robot.baselines import ExpertPolicy
from molmoact_robot.environments.base import open_world
from molmoact_robot.environments.tabletop import GYM_ID, TabletopEnv
from molmoact_robot.rollout import RolloutConfig, Trial, run_episode
from molmoact_robot.tabletop.episodes import EpisodeConfig, run_episode as demonstrate
from molmoact_robot.tabletop.scene import FLAT
from molmoact_robot.tabletop.view import SceneRenderer

SMALL = {"image_size": 64, "quality": "flat"}


@pytest.fixture
def env():
    made = TabletopEnv(**SMALL)
    yield made
    made.close()


def act(env, actions, count=None):
    steps = []
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or len(steps) == count:
            break
    return steps


@needs_gl
@pytest.mark.filterwarnings("error::UserWarning:gymnasium")
def test_gymnasiums_own_checker_is_content() -> None:
    env = gymnasium.make(GYM_ID, max_steps=10, **SMALL).unwrapped
    check_env(env)
    env.close()


@needs_gl
def test_opengl_is_first_touched_by_a_reset(monkeypatch) -> None:
    """LeRobot makes environments before it forks its servers; a context made there would be shared."""
    made = []

    class Counted(SceneRenderer):
        def __init__(self, *arguments, **named) -> None:
            made.append(self)
            super().__init__(*arguments, **named)

    monkeypatch.setattr("molmoact_robot.environments.tabletop.SceneRenderer", Counted)
    env = TabletopEnv(**SMALL)
    assert not made
    for seed in (0, 1):
        env.reset(seed=seed)
    env.close()
    assert len(made) == 2


@needs_gl
def test_an_episode_is_a_function_of_its_seed_however_often_one_looks(env) -> None:
    first, _ = env.reset(seed=3, options={"task": "pick"})
    actions = [a for a, _ in zip(env.expert_actions, range(6), strict=False)]
    seen = act(env, actions)[-1][0]
    other = TabletopEnv(render="on-demand", **SMALL)
    again, _ = other.reset(seed=3, options={"task": "pick"})
    stale = act(other, actions)[-1][0]
    fresh = other.look()
    other.close()
    for name in ("image", "image2"):
        np.testing.assert_array_equal(first["pixels"][name], again["pixels"][name])
        np.testing.assert_array_equal(stale["pixels"][name], again["pixels"][name])
        np.testing.assert_array_equal(fresh["pixels"][name], seen["pixels"][name])
    assert (fresh["pixels"]["image"] != stale["pixels"]["image"]).any()
    np.testing.assert_array_equal(stale["agent_pos"], seen["agent_pos"])


@needs_gl
def test_it_sees_what_the_demonstrations_saw(env) -> None:
    """The first picture and the instruction of a demonstration of the same seed, split and family; its sensor's
    noise is drawn anew."""
    config = EpisodeConfig(split="test", image_hw=(64, 64), quality=FLAT, family="stack")
    recorded = demonstrate(5, config)
    seen, _ = env.reset(seed=5, options={"task": "stack"})
    assert env.task_description == recorded.task.instruction
    there = recorded.steps[0].observation
    np.testing.assert_allclose(seen["agent_pos"], there.state, atol=1e-6)
    difference = seen["pixels"]["image"].astype(float) - there.front_rgb_HWC
    assert np.abs(difference).mean() < 8
    np.testing.assert_allclose(env.grip_grid * 63 / 255, there.grip_pixel_2, atol=1e-3)


@needs_gl
def test_the_expert_succeeds_and_success_is_told_on_every_step(env) -> None:
    env.reset(seed=0, options={"task": "pick"})
    steps = act(env, env.expert_actions)
    flags = [info["is_success"] for *_, info in steps]
    assert flags == [False] * (len(flags) - 1) + [True]
    assert [reward for _, reward, *_ in steps] == [0.0] * (len(flags) - 1) + [1.0]
    assert steps[-1][2:4] == (True, False)


@needs_gl
def test_doing_nothing_is_truncated() -> None:
    env = TabletopEnv(max_steps=4, render="on-demand", **SMALL)
    env.reset(seed=0, options={"task": "in"})
    steps = act(env, [np.array([0, 0, 0, 0, 0, 0, 1], np.float32)] * 9, count=4)
    env.close()
    assert [step[3] for step in steps] == [False, False, False, True]


@needs_gl
@pytest.mark.parametrize(("gripper", "closed"), [("unit", 0.0), ("unit", -1.0), ("libero", 1.0)])
def test_both_gripper_conventions_close_the_fingers(gripper, closed) -> None:
    env = TabletopEnv(gripper=gripper, render="on-demand", **SMALL)
    env.reset(seed=0)
    before = env.look()["agent_pos"][6:]
    act(env, [np.array([0, 0, 0, 0, 0, 0, closed], np.float32)] * 4)
    after = env.look()["agent_pos"][6:]
    env.close()
    assert before.min() > 0.03
    assert after.max() < 0.02


@needs_gl
def test_without_a_seed_the_next_scene_is_drawn(env) -> None:
    env.reset(seed=1)
    seeds = [env.reset()[1]["seed"] for _ in range(2)]
    env.reset(seed=1)
    assert [env.reset()[1]["seed"] for _ in range(2)] == seeds
    assert len({1, *seeds}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splitt": "test"}, "Did you mean 'split'"),
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"task": "pik"}, "Did you mean 'pick'"),
        ({"image_size": 8}, "32..640"),
        ({"max_steps": 0}, "at least 1"),
    ],
)
def test_a_wrong_setting_names_what_was_meant(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        open_world("tabletop", settings)


def test_a_wrong_task_and_a_wrong_action_are_refused(env) -> None:
    with pytest.raises(UserError, match="Did you mean 'pour'"):
        env.reset(seed=0, options={"task": "poor"})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(7, np.float32))


@needs_gl
def test_actions_that_are_no_numbers_never_move_the_arm(env) -> None:
    before = env.reset(seed=0)[0]["agent_pos"]
    for action in (np.full(7, np.nan, np.float32), np.zeros(6, np.float32)):
        with pytest.raises(ValueError, match="7 finite numbers"):
            env.step(action)
    np.testing.assert_array_equal(env.look()["agent_pos"], before)


@needs_gl
def test_the_experts_path_is_the_one_it_takes(env) -> None:
    env.reset(seed=4, options={"task": "pick"})
    promised = env.expert_path()
    taken = [env.grip_grid]
    for action in env.expert_actions:
        env.step(action)
        taken.append(env.grip_grid)
    np.testing.assert_allclose(promised, taken, atol=1e-9)


@needs_gl
def test_closed_loop_the_expert_succeeds_and_idling_does_not() -> None:
    """The roll-out over the real world, pictures only where one looks: both bounds of every table."""
    world = open_world("tabletop", SMALL)
    trials = [Trial(task, 0, seed) for task in ("pick", "turn") for seed in (11, 12)]
    done = [run_episode(world, ExpertPolicy(world), t, RolloutConfig()).success for t in trials]

    def nothing(observation):
        assert observation.images["image"].shape == (64, 64, 3)
        return ActionChunk(np.array([[0, 0, 0, 0, 0, 0, 1]] * 8, np.float32))

    idle = FunctionPolicy(nothing, action_dim=7)
    config = RolloutConfig(max_steps=24)
    ended = [run_episode(world, idle, t, config).ended for t in trials]
    world.close()
    assert sum(done) >= 3, done
    assert ended == ["timeout"] * 4
    assert len(idle.observations) == 12
