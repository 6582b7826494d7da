"""One episode: what is asked, what is executed, what happens when there is no answer, and the numbers of many."""

from __future__ import annotations

import numpy as np
import pytest
from made_worlds import FunctionPolicy, LineEnv, UnspokenEnv, walk
from scipy.stats import binomtest

from molmoact_data.errors import UserError
from molmoact_data.pictures.actions import STRIP_HEIGHT, action_strip
from molmoact_data.pictures.overlay import TAKEN_RGB
from molmoact_data.policies import ActionChunk, PredictionFailed
from molmoact_robot.environments.base import (
    ActionConvention,
    World,
    open_world,
    parse_settings,
    to_libero,
)
from molmoact_robot.evaluation.film import film_frames
from molmoact_robot.evaluation.results import TrialResult, summarize, wilson_interval
from molmoact_robot.rollout import RolloutConfig, Trial, run_episode


def play(answer, *, task="open", seed=0, config=None, world=None, **info):
    policy = FunctionPolicy(answer, **info)
    world = world or World(LineEnv())
    episode = run_episode(world, policy, Trial(task, 0, seed), config or RolloutConfig(), film=True)
    return episode, policy


def fail(reason="bad_text"):
    def answer(observation):
        raise PredictionFailed(reason, "half an answer")

    return answer


# --- observe, act, execute ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("execute", "asked_at"), [(None, [0, 4, 8]), (2, [0, 2, 4, 6, 8]), (9, [0, 4, 8])]
)
def test_a_chunk_is_executed_as_far_as_asked_and_no_further_than_it_goes(execute, asked_at) -> None:
    episode, policy = play(lambda _: walk(), config=RolloutConfig(execute=execute))
    assert [d.step for d in episode.decisions] == asked_at
    assert [o.step for o in policy.observations] == asked_at
    assert episode.success
    assert len(episode.actions) == 10


def test_the_policy_sees_the_present_and_is_reset_with_the_seed() -> None:
    episode, policy = play(lambda _: walk(horizon=3), seed=2)
    assert policy.seeds == [2]
    assert [float(o.state[0]) for o in policy.observations] == pytest.approx([0.2, 0.5, 0.8])
    assert {o.instruction for o in policy.observations} == {"walk to the end, open"}
    assert {o.episode for o in policy.observations} == {"open-000"}
    assert len(episode.actions) == 8, "the last chunk is cut by the success"


def test_an_episode_without_success_is_out_of_time() -> None:
    episode, _ = play(lambda _: walk(gripper=0.0))
    assert episode.ended == "timeout"
    assert len(episode.actions) == 12
    shorter, _ = play(lambda _: walk(gripper=0.0), config=RolloutConfig(max_steps=5))
    assert len(shorter.actions) == 5


def test_only_the_cameras_that_the_model_reads_are_sent() -> None:
    class TwoCameras(LineEnv):
        def _seen(self):
            seen = super()._seen()
            return {**seen, "pixels": {**seen["pixels"], "image2": seen["pixels"]["image"]}}

    _, policy = play(lambda _: walk(), world=World(TwoCameras()), num_cameras=1)
    assert [list(o.images) for o in policy.observations] == [["image"]] * 3


def test_an_action_of_the_wrong_size_ends_the_run_and_never_moves() -> None:
    environment = LineEnv()
    with pytest.raises(UserError, match="3 values per step and the environment takes 2"):
        play(lambda _: ActionChunk(np.zeros((1, 3), np.float32)), world=World(environment))
    assert environment.received == []


# --- no answer ------------------------------------------------------------------------------------


def test_no_answer_is_held_for_a_step_with_the_last_gripper_and_counted() -> None:
    environment = LineEnv()

    def stumble(observation):
        return walk(gripper=0.0, horizon=2) if observation.step != 2 else fail()(observation)

    episode, _ = play(stumble, task="closed", world=World(environment))
    assert episode.success
    assert episode.failures == {"bad_text": 1}
    np.testing.assert_array_equal(environment.received[2], [0.0, 0.0])
    assert sum(a[0] == 1 for a in environment.received) == 10, "and nothing else is lost"


def test_before_the_first_action_the_fingers_are_held_open() -> None:
    environment = LineEnv()
    play(lambda o: fail()(o) if o.step == 0 else walk(), world=World(environment))
    np.testing.assert_array_equal(environment.received[0], [0.0, 1.0])


def test_an_episode_of_failures_ends_as_malformed() -> None:
    episode, _ = play(fail("not_finite"), config=RolloutConfig(max_failures_in_a_row=4))
    assert episode.ended == "malformed_answer"
    assert episode.failures == {"not_finite": 4}
    assert episode.message == "half an answer"
    assert all(a[0] == 0 for a in episode.actions)


def test_where_nobody_says_what_holding_is_the_episode_ends_instead() -> None:
    environment = UnspokenEnv()
    episode, _ = play(fail(), world=World(environment))
    assert episode.ended == "malformed_answer"
    assert environment.received == []


def test_a_broken_world_ends_its_episode_only_and_says_how() -> None:
    episode, _ = play(lambda _: walk(), task="broken")
    assert episode.ended == "environment_error"
    assert episode.message == "ZeroDivisionError: the floor is gone"


def test_a_world_without_is_success_cannot_be_counted() -> None:
    class Silent(LineEnv):
        def step(self, action):
            return (*super().step(action)[:4], {})

    episode, _ = play(lambda _: walk(), world=World(Silent()))
    assert "is_success" in episode.message


# --- conventions and settings ---------------------------------------------------------------------


def test_libero_reads_the_gripper_the_other_way_round() -> None:
    convention = ActionConvention(("x", "gripper"), open_command=-1.0, gripper_command=to_libero)
    sent = [convention.to_environment(np.array([0.5, g], np.float32)) for g in (1.0, 0.0, 0.5, 0.7)]
    np.testing.assert_array_equal(sent, [[0.5, -1], [0.5, 1], [0.5, 0], [0.5, -1]])
    np.testing.assert_array_equal(convention.hold(sent[1]), [0, 1])
    np.testing.assert_array_equal(convention.hold(None), [0, -1])


def test_settings_are_read_as_json_where_they_are_json() -> None:
    read = parse_settings(["split=train", "image-size=64", "flag=true", "a=b=c"], "--env-arg")
    assert read == {"split": "train", "image_size": 64, "flag": True, "a": "b=c"}
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse_settings(["split"], "--env-arg")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tabeltop", {}, "Did you mean 'tabletop'"),
        ("made_worlds:LineEnf", {}, "has no 'LineEnf'"),
        ("made_wrolds:LineEnv", {}, "no module 'made_wrolds'"),
        ("made_worlds:LineEnv", {"limits": 3}, "unexpected keyword argument 'limits'"),
    ],
)
def test_a_world_that_is_not_there_is_one_line(name, settings, message) -> None:
    with pytest.raises(UserError, match=message):
        open_world(name, settings)


def test_a_class_of_the_users_own_is_made_with_its_settings() -> None:
    assert open_world("made_worlds:LineEnv", {"limit": 3}).environment.limit == 3


# --- steering and path errors ---------------------------------------------------------------------


def test_the_path_error_is_the_mean_distance_to_what_was_really_taken() -> None:
    """Walking 0 -> 1 in ten steps: points 0, 2, 5, 7 and 10 of the eleven. A trace 30 to the right errs by 30."""
    taken = np.array([[255 * k / 10, 128.0] for k in (0, 2, 5, 7, 10)])

    def answer(observation):
        chunk = walk(horizon=20)
        return ActionChunk(
            chunk.actions_HD, trace_P2=(taken + np.array([30, 0])).astype(np.float32)
        )

    episode, _ = play(answer)
    assert episode.path_errors() == pytest.approx([30.0], abs=1e-4)
    assert TrialResult.of(episode).path_error == pytest.approx(30.0, abs=1e-4)


def test_steering_draws_what_is_left_of_the_experts_path() -> None:
    class Guided(LineEnv):
        def expert_path(self):
            return np.array([[25.5 * k, 128.0] for k in range(11)])

    _, policy = play(
        lambda _: walk(horizon=5), world=World(Guided()), config=RolloutConfig(steer="expert")
    )
    assert policy.traces == [
        [[0, 128], [51, 128], [128, 128], [178, 128], [255, 128]],
        [[128, 128], [153, 128], [178, 128], [204, 128], [255, 128]],
    ]


def test_steering_needs_an_expert() -> None:
    with pytest.raises(UserError, match="needs an environment that has an expert"):
        play(lambda _: walk(), config=RolloutConfig(steer="expert"))


# --- films ----------------------------------------------------------------------------------------


def test_a_film_has_a_row_per_step_and_draws_prediction_and_path() -> None:
    def answer(observation):
        return ActionChunk(walk().actions_HD, trace_P2=np.array([[0, 20], [255, 20]], np.float32))

    episode, _ = play(answer)
    rows = list(film_frames(episode, None))
    assert len(rows) == len(episode.actions) + 1
    assert len({row.shape for row in rows}) == 1
    seen = rows[-2][:-STRIP_HEIGHT].reshape(-1, 3).astype(int)
    for colour in ((0, 255, 255), (255, 176, 0)):
        assert (np.abs(seen - colour).sum(axis=1) < 40).any(), colour


def test_a_film_shows_the_other_camera_and_what_is_done_with_the_gripper_last() -> None:
    episode, _ = play(lambda _: walk())
    step = 3
    row = list(film_frames(episode, None, ("x", "gripper")))[step]
    asked = [d for d in episode.decisions if d.step <= step][-1]
    cameras = list(asked.observation.images.values())
    width = sum(round(256 * c.shape[1] / c.shape[0]) for c in cameras)
    assert row.shape[1] == width, "the scene, and every other camera as the model saw it"
    expected = action_strip(np.stack(episode.actions), step, (), width)
    shown = row[-STRIP_HEIGHT:]
    assert (shown != expected).any(), "names, not numbers"
    amber = (np.abs(shown.astype(int) - TAKEN_RGB).sum(axis=2) < 40).any(axis=0)
    assert np.flatnonzero(amber).min() > width / 2, "the gripper is the last of two"


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (13, 24), (24, 24), (1, 1), (37, 500)])
def test_the_interval_is_wilsons(successes, n) -> None:
    independent = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx(independent, abs=1e-12)


def test_of_nothing_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_a_summary_counts_by_task_and_kind_whatever_the_order() -> None:
    results = [
        TrialResult("b", 0, 5, "do", "success", 10, 2, path_error=4.0, num_traces=1),
        TrialResult("a", 1, 6, "do", "timeout", 30, 4, {"bad_text": 1}, 8.0, 3),
        TrialResult("a", 0, 5, "do", "malformed_answer", 2, 3, {"bad_text": 2, "bad_shape": 1}),
        TrialResult("a", 2, 7, "do", "environment_error", 1, 1),
    ]
    summary = summarize(results)
    assert summary == summarize(results[::-1])
    assert (summary["n"], summary["successes"]) == (4, 1)
    assert list(summary["per_task"]) == ["a", "b"]
    assert summary["per_task"]["a"]["successes"] == 0
    assert summary["failures"] == {"timeout": 1, "malformed_answer": 1, "environment_error": 1}
    assert summary["predictions"] == {
        "total": 10, "failed": 4, "by_reason": {"bad_shape": 1, "bad_text": 3},
    }  # fmt: skip
    assert summary["path_error"] == {"mean": 7.0, "traces": 4}
