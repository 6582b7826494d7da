"""A model on the wire: real clients of other projects, what is refused and how, many robots at once."""

from __future__ import annotations

import asyncio
import gzip
import json
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import json_numpy
import numpy as np
import pytest
import requests
import websockets.sync.client
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from made_worlds import FunctionPolicy, walk
from openpi_client import action_chunk_broker, msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from molmoact_data.errors import UserError
from molmoact_data.pictures.images import encode_jpeg, encode_png
from molmoact_data.policies import ActionChunk, Observation, PredictionFailed
from molmoact_robot.client import (
    ActionStream,
    RemotePolicy,
    ServerLost,
    StreamConfig,
    decode_answer,
    encode_question,
)
from molmoact_robot.serving import fields
from molmoact_robot.serving.config import ServeConfig
from molmoact_robot.serving.protocol import (
    BadFrame,
    Refused,
    array_from,
    from_json,
    pack,
    to_json,
    unpack,
)
from molmoact_robot.serving.scheduler import Scheduler
from molmoact_robot.serving.server import encode_answer, in_background

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
FRONT, WRIST = RNG.integers(0, 256, (2, 48, 64, 3), np.uint8)
STATE = np.arange(8, dtype=np.float32)
LIBERO = {
    "observation/image": FRONT, "observation/wrist_image": WRIST, "observation/state": STATE,
    "prompt": "close the box",
}  # fmt: skip


def answer(observation):
    """Seven values per step that only this observation gives."""
    first = next(iter(observation.images.values()))
    actions = np.full((8, 7), float(first[0, 0, 0]), np.float32) + np.arange(8)[:, None]
    return ActionChunk(
        actions, trace_P2=np.array([[1, 2], [3, 4]], np.float32), depth_codes=np.arange(100), text="so",
        seconds={"prefill": 0.25}, num_tokens=3,
    )  # fmt: skip


def policy(function=answer, **info) -> FunctionPolicy:
    given = {"action_dim": 7, "horizon": 8, "num_cameras": 2, "state_dim": 8, **info}
    return FunctionPolicy(function, **given)


@pytest.fixture
def served():
    """A running server: `.url`, `.http`, `.policy`."""
    with running(policy()) as server:
        yield server


class running:  # noqa: N801 - a context manager, used as a function
    def __init__(self, served_policy, **config) -> None:
        self.policy = served_policy
        self.context = in_background(served_policy, ServeConfig(port=0, **config))

    def __enter__(self):
        self.url = self.context.__enter__()
        self.http = self.url.replace("ws://", "http://")
        self.policy.observations.clear()  # of the warm-up
        return self

    def __exit__(self, *error):
        return self.context.__exit__(*error)


def openpi(server, **more) -> WebsocketClientPolicy:
    return WebsocketClientPolicy(server.url, **more)


# --- openpi's own client --------------------------------------------------------------------------


def test_openpis_client_gets_actions_and_the_model_sees_what_it_sent(served) -> None:
    client = openpi(served)
    got = client.infer(LIBERO)
    assert got["actions"].dtype == np.float32
    np.testing.assert_array_equal(got["actions"], answer(served.policy.observations[0]).actions_HD)
    seen = served.policy.observations[0]
    np.testing.assert_array_equal(list(seen.images.values()), [FRONT, WRIST])
    np.testing.assert_array_equal(seen.state, STATE)
    assert seen.instruction == "close the box"
    np.testing.assert_array_equal(got["trace"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(got["depth_codes"], np.arange(100))
    assert got["text"] == "so"
    assert {"infer_ms", "queue_ms", "prefill_ms"} <= set(got["server_timing"])
    assert "prev_total_ms" not in got["server_timing"]
    assert client.infer(LIBERO)["server_timing"]["prev_total_ms"] > 0


def test_the_handshake_says_what_must_agree_with_the_robot() -> None:
    with running(policy(sha256="ab" * 32), declared={"gripper": "open_is_1"}) as server:
        told = openpi(server).get_server_metadata()
    assert told["server"] == "molmoact"
    assert (told["action_dim"], told["horizon"], told["state_dim"], told["num_cameras"]) == (
        7,
        8,
        8,
        2,
    )
    assert told["sha256"] == "ab" * 32
    assert told["statistics_key"] == "made"
    assert told["gripper"] == "open_is_1"
    assert told["accepts"]["libero"]["images"] == ["observation/image", "observation/wrist_image"]


def test_openpis_broker_hands_out_single_steps(served) -> None:
    broker = action_chunk_broker.ActionChunkBroker(openpi(served), action_horizon=5)
    steps = [broker.infer(LIBERO)["actions"] for _ in range(6)]
    np.testing.assert_array_equal([s[0] - steps[0][0] for s in steps], [0, 1, 2, 3, 4, 0])
    assert len(served.policy.observations) == 2


@pytest.mark.parametrize(
    ("sent", "images", "state"),
    [
        ({"observation/exterior_image_1_left": FRONT, "observation/wrist_image_left": WRIST,
          "observation/joint_position": STATE[:7], "observation/gripper_position": STATE[7:],
          "prompt": "go"}, [FRONT, WRIST], STATE),
        ({"images": {"cam_high": FRONT.transpose(2, 0, 1), "cam_left_wrist": WRIST.transpose(2, 0, 1)},
          "state": STATE, "prompt": "go"}, [FRONT, WRIST], STATE),
        ({"observation/image": encode_png(FRONT), "observation/state": STATE, "prompt": "go"}, [FRONT], STATE),
        ({"images": [FRONT, WRIST], "state": STATE, "prompt": "go"}, [FRONT, WRIST], STATE),
        ({"observation": {"image": FRONT, "state": STATE}, "prompt": "go"}, [FRONT], STATE),
    ],
    ids=["droid", "aloha", "png", "list", "nested"],
)  # fmt: skip
def test_the_keys_of_other_robots_are_understood(served, sent, images, state) -> None:
    openpi(served).infer(sent)
    seen = served.policy.observations[0]
    np.testing.assert_array_equal(list(seen.images.values()), images)
    np.testing.assert_array_equal(seen.state, state)


def test_a_jpeg_stands_for_a_picture(served) -> None:
    smooth = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)
    openpi(served).infer({**LIBERO, "observation/image": encode_jpeg(smooth, 95)})
    seen = next(iter(served.policy.observations[0].images.values()))
    assert np.abs(seen.astype(int) - smooth).max() < 6


def test_a_robots_own_keys_come_from_a_file(tmp_path) -> None:
    from molmoact_robot.serving.config import read_fields

    (tmp_path / "mine.yaml").write_text(
        "images: [cams/top]\nstate: [q]\nprompt: task\nlayout: CHW\n"
    )
    own = read_fields(tmp_path / "mine.yaml")
    with running(policy(state_dim=3), own_fields=own) as server:
        openpi(server).infer(
            {"cams": {"top": FRONT.transpose(2, 0, 1)}, "q": STATE[:3], "task": "go"}
        )
        assert "mine" in openpi(server).get_server_metadata()["accepts"]
    np.testing.assert_array_equal(next(iter(server.policy.observations[0].images.values())), FRONT)
    (tmp_path / "mine.yaml").write_text("imags: [a]\n")
    with pytest.raises(UserError, match="Did you mean 'images'"):
        read_fields(tmp_path / "mine.yaml")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/imagee": FRONT}, "unknown_key: unknown observation key 'observation/imagee'"),
        ({"observation/state": STATE[:7]}, "wrong_dimension: the model reads a state of 8 values"),
        ({"observation/state": STATE * np.nan}, "wrong_dimension: the state holds NaN"),
        ({"observation/state": None}, "wrong_dimension"),
        ({"observation/image": FRONT.astype(np.float32)}, "wrong_image: observation/image must be uint8"),
        ({"observation/image": FRONT[..., :2]}, "wrong_image: observation/image must be HWC with 3"),
        ({"observation/image": b"GIF89a"}, "wrong_image: observation/image is bytes, but neither"),
        ({"observation/image": b"\xff\xd8 no jpeg"}, "wrong_image: observation/image cannot be decoded"),
        ({"prompt": " "}, "no_instruction: prompt must say"),
        ({"unnorm_key": "bridge"}, "unknown_key: actions are in the statistics 'made', not 'bridge'"),
        ({"trace": [[0, 0]]}, "wrong_trace: a trace is 2 to 5"),
        ({"trace": [[0, 0], [0, 256]]}, "wrong_trace: a trace's points lie on 0..255"),
        ({"deadline_s": -1}, "wrong_request: deadline_s"),
        ({"step": "now"}, "wrong_request: step"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_name_and_the_next_is_answered(
    served, change, message
) -> None:
    client = openpi(served)
    with pytest.raises(RuntimeError) as refused:
        client.infer({**LIBERO, **change})
    assert message in str(refused.value)
    assert "Traceback" not in str(refused.value)
    assert not served.policy.observations, "the model was not asked"
    assert client.infer(LIBERO)["actions"].shape == (8, 7)


def test_no_image_names_the_known_keys(served) -> None:
    with pytest.raises(RuntimeError, match="no_image: no first camera under any known name"):
        openpi(served).infer({"image": FRONT, "prompt": "go"})


def test_an_answer_that_is_no_action_is_an_error_and_never_numbers() -> None:
    def fail(observation):
        raise PredictionFailed("bad_text", "half an answer")

    with running(policy(fail)) as server:
        with pytest.raises(RuntimeError, match="no_action: bad_text: half an answer"):
            openpi(server).infer(LIBERO)
        with pytest.raises(PredictionFailed, match="half an answer") as failed:
            RemotePolicy(server.url).act(Observation({"a": FRONT}, "go", STATE))
        assert failed.value.reason == "bad_text"
        assert requests.post(f"{server.http}/act", data=http_body(), timeout=60).status_code == 422


def test_a_bug_is_one_line_for_the_robot_and_a_traceback_for_the_log(caplog) -> None:
    calls = []

    def bug(observation):
        calls.append(1)
        if len(calls) == 1:
            return answer(observation)
        return {}["secret"]

    with running(policy(bug)) as server:
        client = openpi(server)
        with pytest.raises(RuntimeError, match="internal: KeyError; see the server's log"):
            client.infer(LIBERO)
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
            client.infer(LIBERO)
        assert closed.value.rcvd.code == 1011
        assert requests.get(f"{server.http}/healthz", timeout=60).text == "OK\n"
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\xc1", b"\x93\x01\x02\x03", msgpack_numpy.packb({"a": 1})[:-1], pickle.dumps({"a": 1}),
        msgpack_numpy.packb({"x": {b"__ndarray__": True, b"data": b"1234", b"dtype": "|O", b"shape": [1]}}),
        msgpack_numpy.packb({"x": {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f8", b"shape": [9]}}),
        msgpack_numpy.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "<f8", b"shape": [-1]}}),
        msgpack_numpy.packb({"x": {b"__ndarray__": True, b"data": b"ab", b"dtype": "|S2", b"shape": [1]}}),
        msgpack_numpy.packb({"x": {b"__npgeneric__": True, b"data": "a", b"dtype": "<f8"}}),
    ],
)  # fmt: skip
def test_bytes_that_are_no_frame_are_refused_and_the_server_lives(served, frame) -> None:
    with websockets.sync.client.connect(served.url, max_size=None) as socket:
        socket.recv()
        socket.send(frame)
        assert socket.recv(timeout=60).startswith("bad_frame: ")
        socket.send("text")
        assert socket.recv(timeout=60).startswith("bad_frame: ")
    assert openpi(served).infer(LIBERO)["actions"].shape == (8, 7)


def test_a_request_above_the_limit_is_not_read_to_its_end() -> None:
    with running(policy(), max_request_bytes=100_000) as server:
        big = {**LIBERO, "observation/image": np.zeros((400, 400, 3), np.uint8)}
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
            openpi(server).infer(big)
        assert closed.value.rcvd.code == 1009
        sent = requests.post(
            f"{server.http}/act", data=http_body(external_cam=big["observation/image"]), timeout=60
        )
        assert sent.status_code == 413
        bomb = gzip.compress(b" " * 10_000_000)
        sent = requests.post(
            f"{server.http}/act", data=bomb, headers={"Content-Encoding": "gzip"}, timeout=60
        )
        assert sent.status_code == 413
        assert openpi(server).infer(LIBERO)["actions"].shape == (8, 7)


def test_a_key_is_asked_for_and_a_foreign_page_is_refused() -> None:
    with running(policy(), api_key="open sesame") as server:
        assert openpi(server, api_key="open sesame").infer(LIBERO)["actions"].shape == (8, 7)
        for key in (None, "wrong"):
            with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
                openpi(server, api_key=key)
        with pytest.raises(UserError, match="wants an API key"):
            RemotePolicy(server.url)
        assert RemotePolicy(server.url, api_key="open sesame").info.action_dim == 7
        for path in ("act", "metrics"):
            assert requests.get(f"{server.http}/{path}", timeout=60).status_code == 401
        bearer = {"Authorization": "Bearer open sesame"}
        assert requests.get(f"{server.http}/act", headers=bearer, timeout=60).status_code == 200
        assert requests.get(f"{server.http}/healthz", timeout=60).status_code == 200
        page = {**bearer, "Origin": "http://evil.example"}
        assert (
            requests.post(
                f"{server.http}/act", data=http_body(), headers=page, timeout=60
            ).status_code
            == 401
        )


# --- MolmoAct2's HTTP -----------------------------------------------------------------------------


def http_body(**change) -> str:
    body = {
        "external_cam": FRONT,
        "wrist_cam": WRIST,
        "instruction": "close the box",
        "state": STATE,
    }
    return json_numpy.dumps({**body, **change})


def test_molmoact2s_client_gets_its_answer(served) -> None:
    sent = requests.post(
        f"{served.http}/act",
        data=http_body(timestamp=1.5, num_steps=10, enable_cuda_graph=True),
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    got = json_numpy.loads(sent.text)
    assert sent.status_code == 200
    assert got["actions"].dtype == np.float32
    np.testing.assert_array_equal(got["actions"], answer(served.policy.observations[0]).actions_HD)
    assert got["dt_ms"] >= 0
    np.testing.assert_array_equal(
        list(served.policy.observations[0].images.values()), [FRONT, WRIST]
    )


def test_a_compressed_body_and_a_list_of_images_are_read_too(served) -> None:
    body = json_numpy.dumps({"images": [FRONT, WRIST], "instruction": "go", "state": STATE})
    sent = requests.post(
        f"{served.http}/act", data=gzip.compress(body.encode()), headers={"Content-Encoding": "gzip"},
        timeout=60,
    )  # fmt: skip
    assert sent.status_code == 200
    np.testing.assert_array_equal(
        list(served.policy.observations[0].images.values()), [FRONT, WRIST]
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "bad_frame: the body is not JSON"),
        (b"[1]", "bad_frame: the body is a JSON object"),
        (b'{"external_cam": {"__numpy__": "!!", "dtype": "|u1", "shape": [1]}}', "bad_frame"),
        (
            b'{"external_cam": {"__numpy__": "gASV", "dtype": "|O", "shape": [1]}}',
            "bad_frame: arrays hold numbers",
        ),
        (b'{"instruction": "go"}', "no_image"),
        (b"[" * 100_000, "bad_frame"),
    ],
)
def test_a_bad_body_is_400_with_one_line(served, body, message) -> None:
    sent = requests.post(f"{served.http}/act", data=body, timeout=60)
    assert sent.status_code == 400
    assert sent.json()["error"].startswith(message)


def test_health_description_and_metrics(served) -> None:
    client = openpi(served)
    client.infer(LIBERO)
    with pytest.raises(RuntimeError):
        client.infer({**LIBERO, "prompt": ""})
    requests.post(f"{served.http}/act", data=http_body(), timeout=60)
    assert requests.get(f"{served.http}/act", timeout=60).json()["statistics_key"] == "made"
    text = requests.get(f"{served.http}/metrics", timeout=60).text
    assert 'molmoact_requests_total{protocol="http",outcome="answered"} 1' in text
    assert 'molmoact_requests_total{protocol="openpi",outcome="answered"} 1' in text
    assert 'molmoact_requests_total{protocol="openpi",outcome="no_instruction"} 1' in text
    assert "molmoact_clients 1" in text
    for line in text.splitlines():
        assert line.startswith(("# HELP", "# TYPE")) or float(line.rpartition(" ")[2]) >= 0, line


# --- many robots, and a slow model ----------------------------------------------------------------


def test_pings_are_answered_while_the_model_thinks() -> None:
    """What kills openpi's own server with slow models: no pong for 20 s. Here the client pings fast instead."""
    thinking, may_end = threading.Event(), threading.Event()

    def slow(observation):
        if observation.instruction != "warm up":
            thinking.set()
            may_end.wait(60)
        return answer(observation)

    with (
        running(policy(slow)) as server,
        websockets.sync.client.connect(server.url, max_size=None, ping_interval=None) as socket,
    ):
        socket.recv()
        socket.send(msgpack_numpy.packb(LIBERO))
        assert thinking.wait(60)
        for _ in range(3):
            assert socket.ping().wait(60), "a pong while the model thinks"
        may_end.set()
        assert msgpack_numpy.unpackb(socket.recv(timeout=60))["actions"].shape == (8, 7)


def test_a_robot_that_asks_on_without_waiting_is_told_so_and_loses_nothing_else() -> None:
    thinking, may_go = threading.Event(), threading.Event()

    def slow(observation):
        if observation.instruction != "warm up":
            thinking.set()
            may_go.wait(60)
        return answer(observation)

    with (
        running(policy(slow)) as server,
        websockets.sync.client.connect(server.url, max_size=None) as socket,
    ):
        socket.recv()
        socket.send(msgpack_numpy.packb(LIBERO))
        assert thinking.wait(60)
        for _ in range(4):
            socket.send(msgpack_numpy.packb(LIBERO))
        refused = [socket.recv(timeout=60) for _ in range(3)]
        may_go.set()
        answers = [socket.recv(timeout=60) for _ in range(2)]
    assert all(text.startswith("busy: ") for text in refused)
    assert all(msgpack_numpy.unpackb(a)["actions"].shape == (8, 7) for a in answers)


def test_turns_go_round_whoever_floods() -> None:
    """One client asks for more than it may, all at once; the order of answers alternates and the rest is refused."""
    done: list[str] = []

    async def scenario():
        scheduler: Scheduler[None] = Scheduler()
        gate = threading.Event()

        def work(name):
            def do():
                gate.wait(60)
                done.append(name)

            return do

        async def ask(name):
            try:
                await scheduler.run(name[0], work(name))
            except Refused as refused:
                return refused.name
            return "answered"

        first = asyncio.create_task(ask("a0"))
        await asyncio.sleep(0)  # it runs
        while scheduler.num_waiting:
            await asyncio.sleep(0)
        rest = [asyncio.create_task(ask(n)) for n in ("a1", "a2", "a3", "b0", "c0")]
        await asyncio.sleep(0)
        gate.set()
        outcomes = await asyncio.gather(first, *rest)
        scheduler.close()
        return outcomes

    outcomes = asyncio.run(scenario())
    assert outcomes == ["answered", "answered", "busy", "busy", "answered", "answered"]
    assert done[0] == "a0"
    assert sorted(done) == ["a0", "a1", "b0", "c0"]


def test_what_waits_longer_than_it_is_worth_is_not_asked() -> None:
    asked = []

    async def scenario():
        scheduler: Scheduler[None] = Scheduler()
        gate = threading.Event()
        first = asyncio.create_task(scheduler.run("a", lambda: gate.wait(60)))
        late = asyncio.create_task(scheduler.run("b", lambda: asked.append("b"), deadline_s=0.01))
        await asyncio.sleep(0.05)
        gate.set()
        await first
        with pytest.raises(Refused, match="stale: its turn came"):
            await late
        scheduler.close()

    asyncio.run(scenario())
    assert asked == []


def test_eight_robots_at_once_each_get_their_own_answers(served) -> None:
    def robot(number):
        client = openpi(served)
        picture = np.full((48, 64, 3), number, np.uint8)
        return {
            float(client.infer({**LIBERO, "observation/image": picture})["actions"][0, 0])
            for _ in range(10)
        }

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(robot, range(8))) == [{float(n)} for n in range(8)]


# --- our client -----------------------------------------------------------------------------------


def test_question_and_answer_come_back_whole() -> None:
    observation = Observation({"a": FRONT, "b": WRIST}, "go", STATE, episode="e", step=7)
    question = unpack(pack(encode_question(observation, [[1, 2], [3, 4]], 1.5)))
    request = fields.parse(question, fields.KNOWN, policy().info)
    np.testing.assert_array_equal(list(request.observation.images.values()), [FRONT, WRIST])
    assert (request.observation.instruction, request.observation.step) == ("go", 7)
    assert (request.trace, request.deadline_s) == ([[1, 2], [3, 4]], 1.5)
    for encode, decode in ((pack, unpack), (to_json, from_json)):
        chunk = decode_answer(decode(encode(encode_answer(answer(observation), observation))))
        np.testing.assert_array_equal(chunk.actions_HD, answer(observation).actions_HD)
        np.testing.assert_array_equal(chunk.trace_P2, [[1, 2], [3, 4]])
        np.testing.assert_array_equal(chunk.depth_codes, np.arange(100))


@given(
    hnp.arrays(
        st.sampled_from(["|u1", "<f4", "<f8", "<i8", "|b1", ">i2"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_any_array_travels_both_ways_and_as_openpi_and_json_numpy_spell_it(array) -> None:
    ours = unpack(pack({"x": array}))["x"]
    for got in (
        ours,
        from_json(to_json({"x": array}))["x"],
        unpack(msgpack_numpy.packb({"x": array}))["x"],
        msgpack_numpy.unpackb(pack({"x": array}))["x"],
    ):
        np.testing.assert_array_equal(got, array)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
    if array.ndim:
        np.testing.assert_array_equal(
            from_json(json_numpy.dumps({"x": array}).encode())["x"], array
        )
        np.testing.assert_array_equal(json_numpy.loads(to_json({"x": array}).decode())["x"], array)


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["a"]), np.array([1j]), object()])
def test_what_is_no_number_does_not_travel(value) -> None:
    for encode in (pack, to_json):
        with pytest.raises((BadFrame, TypeError), match=r"number|travel"):
            encode({"x": value})


def test_a_huge_shape_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(BadFrame, match="does not have"):
        array_from(b"", "<f8", [2**40, 2**40])


def test_the_remote_policy_is_the_policy(served) -> None:
    remote = RemotePolicy(served.url, expect={"action_dim": 7, "statistics_key": "made"})
    observation = Observation({"a": FRONT, "b": WRIST}, "go", STATE)
    chunk = remote.act(observation, trace=[[0, 0], [9, 9]])
    np.testing.assert_array_equal(chunk.actions_HD, answer(observation).actions_HD)
    assert served.policy.traces[-1] == [[0, 0], [9, 9]]
    assert remote.info == served.policy.info
    remote.close()
    with pytest.raises(ServerLost, match="closed the connection"):
        remote.act(observation)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"action_dim": 6}, "action_dim: the robot has 6, the server 7"),
        ({"gripper": "open_is_1"}, "gripper: the server does not say"),
    ],
)
def test_a_server_for_another_robot_is_refused_at_the_handshake(served, expect, message) -> None:
    with pytest.raises(UserError, match=message):
        RemotePolicy(served.url, expect=expect)
    assert not served.policy.observations


def test_a_server_that_is_not_there_or_silent_is_one_line() -> None:
    with pytest.raises(ServerLost, match=r"no policy server at ws://127\.0\.0\.1:9"):
        RemotePolicy("ws://127.0.0.1:9")
    release = threading.Event()

    def silent(observation):
        if observation.instruction != "warm up":
            release.wait(60)
        return answer(observation)

    with running(policy(silent)) as server:
        remote = RemotePolicy(server.url, timeout_s=0.2)
        with pytest.raises(ServerLost, match=r"did not answer within 0.2 s"):
            remote.act(Observation({"a": FRONT}, "go", STATE))
        release.set()


def test_the_client_needs_numpy_alone_until_it_connects() -> None:
    code = (
        "import sys, molmoact_robot.client\n"
        "bad = {'torch', 'cv2', 'PIL', 'av', 'mujoco', 'aiohttp', 'pydantic', 'websockets', 'msgpack'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- the stream of actions ------------------------------------------------------------------------


def numbered(observation):
    """Action k of a chunk is the step that it is for."""
    steps = observation.step + np.arange(8, dtype=np.float32)
    return ActionChunk(np.stack([steps, steps], axis=1))


def at(step):
    return Observation({"a": FRONT}, "go", step=step)


def test_a_stream_plays_each_action_at_its_step_and_asks_ahead() -> None:
    asked = policy(numbered)
    stream = ActionStream(asked, StreamConfig(ask_when_left=3, fresh_s=60))
    assert stream.next(at(0)) is None, "nothing is known yet: hold"
    assert stream.wait(60)
    played = []
    for step in range(20):
        played.append(float(stream.next(at(step))[0]))
        assert stream.wait(60)
    assert played == list(range(20))
    assert [o.step for o in asked.observations] == [0, 4, 8, 12, 16]
    assert stream.counts.held == 1


def test_actions_whose_time_has_passed_are_dropped_not_played_late() -> None:
    gate = threading.Event()

    def slow(observation):
        gate.wait(60)
        return numbered(observation)

    stream = ActionStream(policy(slow), StreamConfig(fresh_s=60))
    assert [stream.next(at(step)) for step in range(4)] == [None] * 4
    gate.set()
    assert stream.wait(60)
    assert float(stream.next(at(4))[0]) == 4.0
    assert stream.counts.dropped == 3


def test_what_is_old_is_held_and_never_repeated() -> None:
    calls = []

    def once(observation):
        calls.append(observation.step)
        if len(calls) > 1:
            raise ServerLost("gone")
        return numbered(observation)

    stream = ActionStream(policy(once), StreamConfig(ask_when_left=0, fresh_s=60))
    stream.next(at(0))
    stream.wait(60)
    assert [float(stream.next(at(s))[0]) for s in range(8)] == list(range(8))
    for step in range(8, 12):
        assert stream.next(at(step)) is None
        stream.wait(60)
    assert isinstance(stream.last_error, ServerLost)
    assert stream.counts.failed == len(calls) - 1 >= 2
    short = ActionStream(policy(numbered), StreamConfig(fresh_s=0.01))
    short.next(at(0))
    short.wait(60)
    time.sleep(0.05)
    assert short.next(at(1)) is None, "the picture behind it is older than the limit"


def test_an_answer_from_before_a_reset_is_thrown_away() -> None:
    gate = threading.Event()

    def slow(observation):
        gate.wait(60)
        return numbered(observation)

    stream = ActionStream(policy(slow), StreamConfig(fresh_s=60))
    stream.next(at(0))
    stream.reset()
    gate.set()
    stream.wait(60)
    assert stream.next(at(0)) is None


# --- the command ----------------------------------------------------------------------------------


PROGRAM = (
    "import sys, cli; from molmoact_data import policies; "
    "policies.POLICIES['walker'] = 'made_worlds:WalkerPolicy'; sys.argv[0] = 'molmoact'; cli.main()"
)


@pytest.fixture
def checkpoint(tmp_path) -> str:
    config = {"model_type": "walker", "name": "walker", "gripper": 1.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_the_command_listens_when_warm_answers_and_ends_on_a_signal(
    checkpoint, monkeypatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "serve",
        "--checkpoint",
        checkpoint,
        "--port",
        "0",
        "--json",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        told = json.loads(process.stdout.readline())
        client = WebsocketClientPolicy(told["host"], told["port"])
        got = client.infer({"observation/image": FRONT, "prompt": "walk"})
        np.testing.assert_array_equal(got["actions"], walk().actions_HD)
        process.terminate()
        assert process.wait() == 0


def test_eval_asks_a_server(checkpoint, tmp_path, molmoact) -> None:
    with running(FunctionPolicy(lambda _: walk())) as server:
        code, _, err = molmoact(
            "eval", "--env", "made_worlds:LineEnv", "--server", server.url, "--tasks", "open",
            "--trials", 2, "--no-video", "--output-path", tmp_path / "d",
        )  # fmt: skip
    assert code == 0, err
    results = json.loads((tmp_path / "d/results.json").read_text())
    assert (results["successes"], results["policy"]["checkpoint"]) == (2, "made")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "/nowhere"], "/nowhere is not a model folder"),
        (["--port", 70000], "port must be 0..65535"),
        (["--api-key-file", "/nowhere"], "cannot read the API key"),
        (["--fields", "/nowhere.yaml"], "cannot read the config file"),
        (["--declare", "gripper"], "KEY=VALUE"),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(checkpoint, flags, message) -> None:
    program = (
        "import sys, cli\n"
        f"sys.argv = ['molmoact', 'serve', '--checkpoint', {checkpoint!r}, *{list(map(str, flags))!r}]\n"
        "from molmoact_data import policies\n"
        "policies.POLICIES['walker'] = 'nowhere:Never'\n"
        "try:\n    cli.main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout.strip() == "False"
