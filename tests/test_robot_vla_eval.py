"""Ai2's evaluation harness: its own client over its own server, with our model behind it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import anyio
import numpy as np
import pytest
from made_worlds import FunctionPolicy

from molmoact_data import policies
from molmoact_data.policies import ActionChunk, PredictionFailed
from molmoact_robot.environments.libero import prepare_picture

ROOT = Path(__file__).resolve().parent.parent
connection = pytest.importorskip("vla_eval.connection")
serving = pytest.importorskip("vla_eval.model_servers.serve")

RNG = np.random.default_rng(0)
VIEW, WRIST = (
    np.repeat(np.repeat(RNG.integers(0, 256, (32, 32, 3), np.uint8), 8, 0), 8, 1) for _ in range(2)
)


def server_class():
    path = ROOT / "deploy/vla_eval/molmoact_server.py"
    spec = importlib.util.spec_from_file_location("molmoact_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MolmoActModelServer


def answer(observation):
    actions = np.zeros((8, 7), np.float32)
    actions[:, 0] = np.arange(8) / 10
    actions[:, 6] = [1, 1, 1, 1, 0, 0, 0, 0]
    return ActionChunk(actions)


@pytest.fixture
def served(monkeypatch):
    """A function that serves a policy to the harness's client and runs `client(connection)`."""

    def run(policy, client, benchmark="libero"):
        monkeypatch.setattr(policies, "load_policy", lambda *_, **__: policy)
        server = server_class()("made", benchmark=benchmark)

        async def both():
            async with anyio.create_task_group() as group:
                port = await group.start(serving.serve_async, server, "127.0.0.1", 0)
                async with connection.Connection(f"ws://127.0.0.1:{port}", timeout=60) as robot:
                    await client(robot)
                group.cancel_scope.cancel()

        anyio.run(both)

    return run


def observation():
    return {"images": {"wrist": WRIST, "agentview": VIEW}, "task_description": "close the box"}


def test_the_harness_gets_single_steps_in_liberos_terms(served) -> None:
    policy, steps = FunctionPolicy(answer, num_cameras=2, action_dim=7, horizon=8), []

    async def client(robot):
        await robot.start_episode({"task": {"name": "close the box"}})
        steps.extend([(await robot.act(observation()))["actions"] for _ in range(9)])
        await robot.end_episode({})

    served(policy, client)
    np.testing.assert_allclose([s[0] for s in steps], [*np.arange(8) / 10, 0], atol=1e-6)
    assert [s[6] for s in steps] == [-1, -1, -1, -1, 1, 1, 1, 1, -1], "open = -1, closed = +1"
    assert len(policy.observations) == 2, "one question per chunk"
    seen = policy.observations[0]
    assert list(seen.images) == ["agentview", "wrist"], (
        "the external camera first, whatever the order sent"
    )
    np.testing.assert_array_equal(seen.images["agentview"], prepare_picture(VIEW))
    assert seen.instruction == "close the box"


def test_other_benchmarks_get_pictures_and_actions_as_they_are(served) -> None:
    policy, got = FunctionPolicy(answer, num_cameras=1, action_dim=7, horizon=8), []

    async def client(robot):
        await robot.start_episode({"task": {}})
        got.append((await robot.act(observation()))["actions"])

    served(policy, client, benchmark="plain")
    assert got[0][6] == 1
    np.testing.assert_array_equal(policy.observations[0].images["agentview"], VIEW)
    assert list(policy.observations[0].images) == ["agentview"]


def test_what_is_no_action_is_an_error_message_and_never_numbers(served) -> None:
    def fail(observation):
        raise PredictionFailed("bad_text", "half an answer")

    async def client(robot):
        await robot.start_episode({"task": {}})
        with pytest.raises(RuntimeError, match="Server error"):
            await robot.act(observation())

    served(FunctionPolicy(fail, num_cameras=2, action_dim=7, horizon=8), client)


def test_the_harness_is_asked_for_what_the_model_reads(monkeypatch) -> None:
    for cameras, state, params in (
        (1, None, {}),
        (2, 8, {"send_wrist_image": True, "send_state": True}),
    ):
        policy = FunctionPolicy(answer, num_cameras=cameras, state_dim=state)
        monkeypatch.setattr(policies, "load_policy", lambda *_, policy=policy, **__: policy)
        assert server_class()("made").get_observation_params() == params
    with pytest.raises(ValueError, match="benchmark is one of"):
        server_class()("made", benchmark="libreo")
