"""Gripper points from an OpenAI-compatible vision endpoint (vLLM serving Molmo, for example).

    vllm serve allenai/Molmo-7B-D-0924 --trust-remote-code
    molmoact preprocess ... --pointer server --pointer-url http://localhost:8000/v1

A model whose served name holds `molmo2` answers in Molmo2's format, every other in Molmo's.
Frames go out as PNG, several requests at a time. Transient failures (no connection, time-outs, 408, 409,
425, 429, 5xx) are retried with growing pauses; anything else the server refuses is the user's to mend.
The licence of the answers is that of the served model, which the server does not tell.
"""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeGuard

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.teachers.answers import answer_confidence, arms_from_percent, parse_points
from molmoact_data.teachers.timed_answers import points_of_picture

logger = logging.getLogger(__name__)

TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class ServerConfig:
    """How the endpoint is asked."""

    concurrency: int = 8
    """Requests in flight at once; the server batches them."""
    max_tokens: int = 128
    """Length of an answer, at most."""
    timeout_s: float = 120.0
    """For one request."""
    attempts: int = 6
    """Tries per request before the run stops."""
    first_pause_s: float = 0.5
    """Before the second try; doubles each time, `Retry-After` overrides it."""
    longest_pause_s: float = 30.0
    """No pause is longer."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, sent as a bearer token where it is set."""


@dataclass(frozen=True)
class ServerSettings:
    """What a run says of this teacher; fields are `TeacherConfig`'s."""

    pointer_url: str | None = None
    pointer_checkpoint: str | None = None
    """Name of the model on the server."""
    arms: int = 1

    def __post_init__(self) -> None:
        if self.pointer_url is None:
            raise ValueError("--pointer server needs --pointer-url URL")


class ServerPointer:
    """`GripperPointer` over HTTP. Confidence comes from the log-probabilities where the server tells them, else 1."""

    Settings = ServerSettings
    answers_are_dear = True

    @classmethod
    def load(cls, settings: ServerSettings, device: str) -> ServerPointer:
        """As a run asks for it."""
        assert settings.pointer_url is not None
        return cls(settings.pointer_url, settings.pointer_checkpoint, num_arms=settings.arms)

    works_elsewhere = True
    """Asked about a whole batch at once; see `ServerConfig.concurrency`."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        num_arms: int = 1,
        config: ServerConfig = ServerConfig(),
    ) -> None:
        """`url` ends in /v1; `model` None = the only model that the server has."""
        self.num_arms = num_arms
        self.config = config
        key = os.environ.get(config.api_key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/"), timeout=config.timeout_s, headers=headers
        )
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="pointer")
        self._check_reachable()
        self.model = model if model is not None else self._only_model()
        self._read = reader_of(self.model)

    def describe(self) -> dict[str, str]:
        """The served model; its revision and licence are not told by the protocol."""
        return {
            "name": f"server/{self.model}",
            "revision": "as served",
            "licence": "that of the served model",
        }

    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """RGB uint8 [N,H,W,3] -> points of the N frames; NaN where the answer has no well-formed point."""
        xy_NA2 = np.full((len(rgb_NHWC), self.num_arms, 2), np.nan, np.float32)
        confidence_NA = np.zeros((len(rgb_NHWC), self.num_arms), np.float32)
        answers = list(self._pool.map(lambda rgb: self._ask(rgb, prompt), rgb_NHWC))
        for row, choice in enumerate(choice for choice, _ in answers):
            text = choice["message"]["content"] or ""
            image_hw = (rgb_NHWC.shape[1], rgb_NHWC.shape[2])
            xy_NA2[row] = arms_from_percent(self._read(text), self.num_arms, image_hw)
            confidence_NA[row] = ~np.isnan(xy_NA2[row, :, 0]) * choice_confidence(choice)
        tokens = [told for _, told in answers if told is not None]
        all_told = len(tokens) == len(answers)
        counted = np.array(tokens, np.int64).reshape(-1, 2) if all_told else None
        return GripperPoints(xy_NA2, confidence_NA, counted)

    def _ask(
        self, rgb_HW3: NDArray[np.uint8], prompt: str
    ) -> tuple[dict[str, Any], tuple[int, int] | None]:
        """The first choice of a chat completion about one frame, and the tokens read and written for it."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": _content(rgb_HW3, prompt)}],
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
            "logprobs": True,
        }
        answer = self._request("POST", "/chat/completions", body)
        try:
            choice = answer["choices"][0]
            choice["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{self._client.base_url} did not answer with a chat completion: {str(answer)[:200]}"
            ) from error
        return choice, told_tokens(answer)

    def _check_reachable(self) -> None:
        """Fail before any frame is decoded; what the server answers does not matter here."""
        try:
            self._client.get("/models")
        except httpx.TransportError as error:
            raise UserError(
                f"nothing answers at {self._client.base_url} ({error}). Is the server running, and does its "
                "address end in /v1?"
            ) from error

    def _only_model(self) -> str:
        served = [entry["id"] for entry in self._request("GET", "/models")["data"]]
        if len(served) != 1:
            raise UserError(
                f"the server has the models {', '.join(served) or '(none)'}: say which one points."
            )
        return served[0]

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request, tried again while the failure may pass. Raises `UserError`."""
        for attempt in range(self.config.attempts):
            pause_s = min(self.config.first_pause_s * 2**attempt, self.config.longest_pause_s)
            try:
                response = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return _json(response)
                problem = f"HTTP {response.status_code}: {response.text[:300]}"
                if response.status_code not in TRANSIENT:
                    raise UserError(f"the server at {response.url} refuses: {problem}")
                pause_s = _retry_after_s(response, pause_s, self.config.longest_pause_s)
            if attempt + 1 < self.config.attempts:
                logger.info("pointer server: %s; again in %.1f s", problem, pause_s)
                time.sleep(pause_s)
        raise UserError(
            f"no answer from {self._client.base_url}{path.lstrip('/')} after {self.config.attempts} "
            f"tries ({problem}). Is the server running, and does its address end in /v1? What was "
            "labelled so far is kept: run again with --resume."
        )


def reader_of(model: str) -> Callable[[str], list[tuple[float, float]]]:
    """How a served model's points are told: in thousandths where its name says Molmo2, else in per cent.

    By the name and never by the text: the two units do not mix.
    """
    return points_of_picture if "molmo2" in model.lower() else parse_points


def choice_confidence(choice: dict[str, Any]) -> float:
    """As `answer_confidence`, from an OpenAI choice; 1 where the server tells no log-probabilities."""
    told = (choice.get("logprobs") or {}).get("content")
    if not told:
        return 1.0
    return answer_confidence([t["token"] for t in told], [t["logprob"] for t in told])


def told_tokens(answer: dict[str, Any]) -> tuple[int, int] | None:
    """What a chat completion cost, tokens read and written; None where the server does not tell, or no counts."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (read, written) if _is_count(read) and _is_count(written) else None


def _is_count(told: object) -> TypeGuard[int]:
    return isinstance(told, int) and not isinstance(told, bool) and told >= 0


def _content(rgb_HW3: NDArray[np.uint8], prompt: str) -> list[dict[str, Any]]:
    _, png = cv2.imencode(".png", cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR))
    url = f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise UserError(
            f"{response.url} answered with something that is not JSON: {response.text[:200]!r}. "
            "Does the address end in /v1?"
        ) from error


def _retry_after_s(response: httpx.Response, pause_s: float, longest_s: float) -> float:
    told = response.headers.get("Retry-After", "")
    return min(float(told), longest_s) if told.isdigit() else pause_s
