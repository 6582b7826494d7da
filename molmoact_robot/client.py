"""What runs on the robot: numpy, and on first use websockets and msgpack. Nothing of torch.

`RemotePolicy` asks a server and waits. `ActionStream` is for a control loop that must not wait: it asks ahead of time
in a thread, plays chunks by the step they belong to, and says *hold* rather than repeat what is old.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.policies import ActionChunk, Observation, PolicyInfo, PredictionFailed
from molmoact_robot.serving.protocol import IMAGE_LIST, NO_ACTION, BadFrame, Refused, pack, unpack

API_KEY_VARIABLE = "MOLMOACT_API_KEY"
TIMEOUT_S = 600.0
"""A 7B model on a CPU takes minutes for an answer; a robot wants much less."""


class ServerLost(UserError):
    """The server cannot be reached, went away, or did not answer in time. Nothing was decided: hold."""


class RemotePolicy:
    """A `Policy` behind `molmoact serve`, or behind any server that speaks openpi's protocol. Close it."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        expect: Mapping[str, Any] | None = None,
    ) -> None:
        """`url`: `ws://host:port`. `expect`: facts about the robot that the server's handshake must agree with.

        Raises `ServerLost`, or `UserError` where a fact differs or is not declared.
        """
        self._url, self._api_key, self._timeout_s = url, api_key, timeout_s
        self._open = contextlib.ExitStack()
        self._socket = self._connect()
        self.metadata = self._handshake()
        check_handshake(self.metadata, expect or {})

    @property
    def info(self) -> PolicyInfo:
        """What the server declared. Raises `UserError` where it declares no sizes, as other servers may."""
        try:
            return PolicyInfo(
                family=str(self.metadata["family"]),
                checkpoint=str(self.metadata["checkpoint"]),
                sha256=str(self.metadata["sha256"]),
                num_cameras=int(self.metadata["num_cameras"]),
                action_dim=int(self.metadata["action_dim"]),
                horizon=int(self.metadata["horizon"]),
                state_dim=self.metadata["state_dim"],
                statistics_key=str(self.metadata["statistics_key"]),
                extra=self.metadata.get("extra", {}),
            )
        except KeyError as error:
            raise UserError(
                f"{self._url} does not declare {error}: it is not served by molmoact, so what it answers "
                "cannot be checked."
            ) from error

    def reset(self, seed: int | None = None) -> None:
        """The server remembers nothing between questions."""

    def act(
        self,
        observation: Observation,
        *,
        trace: Sequence[Sequence[int]] | None = None,
        deadline_s: float | None = None,
    ) -> ActionChunk:
        """The next chunk. Raises `PredictionFailed` where the answer is no action, `Refused` where the server will
        not answer (busy, stale), `ServerLost` where it is gone or too slow.
        """
        return decode_answer(self._ask(encode_question(observation, trace, deadline_s)))

    def close(self) -> None:
        self._open.close()

    def _connect(self) -> Any:
        from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
        from websockets.sync.client import connect

        headers = {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None
        try:
            return self._open.enter_context(
                connect(
                    self._url,
                    compression=None,
                    max_size=None,
                    additional_headers=headers,
                    open_timeout=min(self._timeout_s, 30.0),
                    close_timeout=1.0,
                    proxy=None,
                )
            )
        except InvalidStatus as error:
            if error.response.status_code == 401:
                raise UserError(f"{self._url} wants an API key, or another one.") from error
            raise ServerLost(f"{self._url} answers {error}; is it a policy server?") from error
        except InvalidURI as error:
            raise UserError(
                f"{self._url} is no address of a policy server: write ws://HOST:PORT."
            ) from error
        except (OSError, WebSocketException) as error:
            raise ServerLost(
                f"no policy server at {self._url}: {error}. Start one with `molmoact serve`; it listens when its "
                "model is warm."
            ) from error

    def _handshake(self) -> dict[str, Any]:
        try:
            return unpack(self._receive())
        except BadFrame as error:
            raise UserError(f"{self._url} does not speak openpi's protocol: {error}") from error

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(pack(question))
        except ConnectionClosed as error:
            raise ServerLost(f"{self._url} closed the connection: {error}") from error
        return unpack(self._receive())

    def _receive(self) -> bytes:
        """The next frame, never later than the deadline; after one is missed the connection is of no more use."""
        from websockets.exceptions import ConnectionClosed

        try:
            frame = self._socket.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            self.close()
            raise ServerLost(f"{self._url} did not answer within {self._timeout_s:g} s") from error
        except ConnectionClosed as error:
            raise ServerLost(f"{self._url} closed the connection: {error}") from error
        if isinstance(frame, str):
            refused = Refused.parse(frame)
            if refused.name == NO_ACTION:
                reason, _, message = refused.message.partition(": ")
                raise PredictionFailed(reason, message)
            raise refused
        return frame


def check_handshake(metadata: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the server declares every expected fact with the expected value."""
    wrong = [
        f"{key}: the robot has {value!r}, the server {metadata[key]!r}"
        if key in metadata
        else f"{key}: the server does not say"
        for key, value in expect.items()
        if metadata.get(key) != value or key not in metadata
    ]
    if wrong:
        raise UserError(f"this server's model is not for this robot: {'; '.join(wrong)}.")


def encode_question(
    observation: Observation,
    trace: Sequence[Sequence[int]] | None = None,
    deadline_s: float | None = None,
) -> dict[str, Any]:
    """An observation as it travels; `serving.fields.parse` is the inverse."""
    question: dict[str, Any] = {
        IMAGE_LIST: [np.ascontiguousarray(image) for image in observation.images.values()],
        "prompt": observation.instruction,
        "step": observation.step,
        "episode": observation.episode,
    }
    if observation.state is not None:
        question["state"] = np.asarray(observation.state, dtype=np.float32)
    if trace is not None:
        question["trace"] = np.asarray(trace, dtype=np.int64)
    if deadline_s is not None:
        question["deadline_s"] = float(deadline_s)
    return question


def decode_answer(answer: Mapping[str, Any]) -> ActionChunk:
    """A server's answer -> a chunk, checked. Raises `PredictionFailed` where it holds no actions."""
    actions = answer.get("actions")
    if not isinstance(actions, np.ndarray):
        raise PredictionFailed("bad_shape", "the answer has no actions")
    trace, codes = answer.get("trace"), answer.get("depth_codes")
    timing = answer.get("server_timing", {})
    return ActionChunk(
        actions_HD=np.array(actions, dtype=np.float32),
        trace_P2=None if trace is None else np.array(trace, dtype=np.float32),
        depth_codes=None if codes is None else np.array(codes, dtype=np.int64),
        text=str(answer.get("text", "")),
        seconds={k.removesuffix("_ms"): v / 1000 for k, v in timing.items() if k.endswith("_ms")},
        num_tokens=int(answer.get("num_tokens", 0)),
    )


@dataclass(frozen=True)
class StreamConfig:
    """How a control loop plays chunks."""

    ask_when_left: int = 4
    """Ask for the next chunk when so many actions are left."""
    fresh_s: float = 2.0
    """Actions from a picture older than this are not played: hold."""

    def __post_init__(self) -> None:
        if self.ask_when_left < 0 or self.fresh_s <= 0:
            raise ValueError("ask_when_left is at least 0 and fresh_s above 0")


@dataclass
class StreamCounts:
    """What happened since the start."""

    asked: int = 0
    played: int = 0
    held: int = 0
    dropped: int = 0
    """Actions whose time had passed when their chunk arrived."""
    failed: int = 0
    """Questions without an answer: refused, lost, or no action."""


class ActionStream:
    """Chunks as a stream of single actions, indexed by the robot's step.

    Call `next` once per control step; it returns at once. None means hold: no action is known for this step, or the
    picture behind it is too old. An old action is never repeated.
    """

    def __init__(self, policy: Any, config: StreamConfig | None = None) -> None:
        """`policy`: anything with `act(observation)`; its errors become holds and are counted."""
        self._policy, self._config = policy, config or StreamConfig()
        self.counts = StreamCounts()
        self.last_error: Exception | None = None
        self._lock = threading.Lock()
        self._chunk: NDArray[np.float32] | None = None
        self._chunk_step = self._now = 0
        self._seen_at = 0.0
        self._asking: threading.Thread | None = None
        self._generation = 0

    def next(self, observation: Observation) -> NDArray[np.float32] | None:
        """The action [D] of `observation.step`, or None to hold; asks ahead with this observation where it is time."""
        with self._lock:
            self._now = observation.step
            action = self._action_of(observation.step)
            if self._num_left(observation.step) <= self._config.ask_when_left:
                self._ask(observation)
            if action is None:
                self.counts.held += 1
            else:
                self.counts.played += 1
            return action

    def reset(self) -> None:
        """A new episode: forget what is left; an answer that is still under way is thrown away when it comes."""
        with self._lock:
            self._chunk, self._generation = None, self._generation + 1

    def wait(self, timeout_s: float) -> bool:
        """Until no question is under way, for tests and for a robot that stands still; False = still asking."""
        asking = self._asking
        if asking is not None:
            asking.join(timeout_s)
        return asking is None or not asking.is_alive()

    def _num_left(self, step: int) -> int:
        return 0 if self._chunk is None else self._chunk_step + len(self._chunk) - step - 1

    def _action_of(self, step: int) -> NDArray[np.float32] | None:
        offset = step - self._chunk_step
        if self._chunk is None or not 0 <= offset < len(self._chunk):
            return None
        if time.monotonic() - self._seen_at > self._config.fresh_s:
            return None
        return self._chunk[offset]

    def _ask(self, observation: Observation) -> None:
        if self._asking is not None and self._asking.is_alive():
            return
        self.counts.asked += 1
        self._asking = threading.Thread(
            target=self._fetch,
            args=(observation, time.monotonic(), self._generation),
            name="ask-ahead",
            daemon=True,
        )
        self._asking.start()

    def _fetch(self, observation: Observation, seen_at: float, generation: int) -> None:
        try:
            chunk = self._policy.act(observation)
        except (PredictionFailed, UserError, BadFrame) as error:
            with self._lock:
                self.counts.failed += 1
                self.last_error = error
            return
        with self._lock:
            if generation == self._generation:
                self._chunk, self._chunk_step = chunk.actions_HD, observation.step
                self._seen_at = seen_at
                self.counts.dropped += min(max(self._now - observation.step, 0), len(self._chunk))
