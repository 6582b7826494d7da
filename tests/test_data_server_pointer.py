"""The server pointer against a real HTTP server on the loopback interface."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import pytest

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import GripperPointer, Spent
from molmoact_data.teachers.server import ServerConfig, ServerPointer


@dataclass
class FakeVLLM:
    """Says where the brightest pixel is; fails as told first."""

    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    logprobs: bool = True
    models: tuple[str, ...] = ("molmo",)
    answer: str | None = None
    usage: list[Any] = field(default_factory=list)
    """Of the next answers, one each; afterwards none is told."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        image, text = body["messages"][0]["content"]
        png = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
        red = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., 2]
        y, x = np.unravel_index(red.argmax(), red.shape)
        said = f'<point x="{100 * x / red.shape[1]:.1f}" y="{100 * y / red.shape[0]:.1f}" alt="g">'
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": self.answer or said}}
        if self.logprobs:
            content = [
                {"token": "<point", "logprob": -3.0}, {"token": "12.5", "logprob": math.log(0.81)},
                {"token": "25", "logprob": math.log(0.25)},
            ]  # fmt: skip
            choice["logprobs"] = {"content": content}
        assert text == {"type": "text", "text": "point to the robot gripper"}
        told = {"usage": self.usage.pop(0)} if self.usage else {}
        return {"choices": [choice], **told}


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    state = FakeVLLM()
    lock = threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.reply(200, {"data": [{"id": name} for name in state.models]})

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                running += 1
                state.most_at_once = max(state.most_at_once, running)
                state.requests.append(
                    {"path": self.path, "key": self.headers["Authorization"], **body}
                )
                failure = state.failures.pop(0) if state.failures else None
            if failure:
                self.reply(failure[0], {"error": "told to fail"}, failure[1])
            else:
                self.reply(200, state.complete(body))
            with lock:
                running -= 1

        def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    yield state
    httpd.shutdown()
    httpd.server_close()


QUICK = ServerConfig(first_pause_s=0.001, longest_pause_s=0.01, attempts=3, concurrency=4)
PROMPT = "point to the robot gripper"


def spots(*xy: tuple[int, int]) -> np.ndarray:
    """80 x 100 frames whose reddest pixel is the point."""
    frames = np.zeros((len(xy), 80, 100, 3), np.uint8)
    for frame, (x, y) in zip(frames, xy, strict=True):
        frame[y, x, 0] = 255
    return frames


def test_every_frame_gets_its_own_answer(server: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    pointer = ServerPointer(server.url, config=QUICK)
    assert isinstance(pointer, GripperPointer)
    assert pointer.describe()["name"] == "server/molmo"
    where = [(10 * i, 4 * i) for i in range(10)]
    points = pointer.point(spots(*where), PROMPT)
    expected = np.array(where) / [99, 79]
    np.testing.assert_allclose(points.xy_NA2[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(points.confidence_NA, np.sqrt(0.81 * 0.25), rtol=1e-6)
    assert {r["path"] for r in server.requests} == {"/v1/chat/completions"}
    assert {(r["temperature"], r["model"], r["key"]) for r in server.requests} == {
        (0, "molmo", "Bearer secret")
    }
    assert server.most_at_once <= QUICK.concurrency


def test_server_without_logprobs_is_certain(server: FakeVLLM) -> None:
    server.logprobs = False
    points = ServerPointer(server.url, "molmo", config=QUICK).point(spots((1, 1)), PROMPT)
    assert points.confidence_NA.tolist() == [[1.0]]


def test_tokens_are_counted_where_every_answer_tells_them(server: FakeVLLM) -> None:
    pointer = ServerPointer(server.url, "molmo", config=QUICK)
    server.usage = [
        {"prompt_tokens": 300 + i, "completion_tokens": 20, "total_tokens": 320} for i in range(3)
    ]
    points = pointer.point(spots((1, 1), (2, 2), (3, 3)), PROMPT)
    assert points.tokens_C2 is not None
    assert sorted(points.tokens_C2.tolist()) == [[300, 20], [301, 20], [302, 20]]
    assert Spent.of(points, calls=3) == Spent(3, 3, 3, 903, 60)
    server.usage = [{"prompt_tokens": 300, "completion_tokens": 20}]
    points = pointer.point(spots((1, 1), (2, 2)), PROMPT)
    assert points.tokens_C2 is None
    assert Spent.of(points, calls=2) == Spent(2, 2)
    assert np.isfinite(points.xy_NA2).all()


@pytest.mark.parametrize(
    "usage",
    [None, {}, [], "320", {"prompt_tokens": 300}, {"prompt_tokens": "300", "completion_tokens": 20},
     {"prompt_tokens": 300.5, "completion_tokens": 20}, {"prompt_tokens": True, "completion_tokens": 20},
     {"prompt_tokens": 300, "completion_tokens": -1}, {"prompt_tokens": None, "completion_tokens": None}],
)  # fmt: skip
def test_what_is_no_count_is_not_counted(server: FakeVLLM, usage: Any) -> None:
    """The point is taken all the same."""
    server.usage = [usage]
    points = ServerPointer(server.url, "molmo", config=QUICK).point(spots((50, 40)), PROMPT)
    assert points.tokens_C2 is None
    assert points.xy_NA2[0, 0, 0] == pytest.approx(50 / 99)


def test_malformed_answers_of_the_server_are_not_found(server: FakeVLLM) -> None:
    server.answer = "There is no gripper."
    points = ServerPointer(server.url, "molmo", config=QUICK).point(spots((1, 1)), PROMPT)
    assert np.isnan(points.xy_NA2).all()
    assert points.confidence_NA.tolist() == [[0.0]]


def test_transient_failures_are_retried(server: FakeVLLM) -> None:
    server.failures = [(503, {}), (429, {"Retry-After": "0"})]
    points = ServerPointer(server.url, "molmo", config=QUICK).point(spots((50, 40)), PROMPT)
    assert points.xy_NA2[0, 0, 0] == pytest.approx(50 / 99)
    assert len(server.requests) == 3


def test_lasting_failures_stop_with_a_clear_line(server: FakeVLLM) -> None:
    pointer = ServerPointer(server.url, "molmo", config=QUICK)
    server.failures = [(503, {})] * 3
    with pytest.raises(UserError, match=r"after 3 tries \(HTTP 503.*--resume"):
        pointer.point(spots((1, 1)), PROMPT)
    server.failures = [(404, {})]
    with pytest.raises(UserError, match="refuses: HTTP 404"):
        pointer.point(spots((1, 1)), PROMPT)
    assert len(server.requests) == 4  # a 404 is not tried again


def test_wrong_servers_are_named(server: FakeVLLM) -> None:
    server.models = ("a", "b")
    with pytest.raises(UserError, match="the models a, b: say which"):
        ServerPointer(server.url, config=QUICK)
    for model in (None, "molmo"):
        with pytest.raises(UserError, match=r"nothing answers at .*Is the server running"):
            ServerPointer("http://127.0.0.1:9/v1", model, config=QUICK)


@pytest.mark.parametrize(
    ("model", "answer", "expected"),
    [
        ("allenai/Molmo2-4B", '<points coords="1 1 500 250">gripper</points>', (0.5, 0.25)),
        ("molmo", '<point x="50.0" y="25.0" alt="g">g</point>', (0.5, 0.25)),
        ("allenai/Molmo2-4B", '<point x="50.0" y="25.0" alt="g">g</point>', None),
        ("molmo", '<points coords="1 1 500 250">gripper</points>', None),
    ],
)
def test_the_served_model_decides_the_unit(
    server: FakeVLLM, model: str, answer: str, expected: tuple[float, float] | None
) -> None:
    """Thousandths of Molmo2 and per cent of Molmo never mix: the other family's words are no points."""
    server.models, server.answer = (model,), answer
    points = ServerPointer(server.url).point(
        np.zeros((1, 101, 101, 3), np.uint8), "point to the robot gripper"
    )
    if expected is None:
        assert np.isnan(points.xy_NA2).all()
        assert (points.confidence_NA == 0).all()
    else:
        np.testing.assert_allclose(points.xy_NA2[0, 0], np.array(expected) * 1.01, rtol=1e-6)
