"""One process, one warm model, and the protocols that robots speak, on one port.

`GET /` with a WebSocket upgrade speaks openpi's protocol; `POST /act` MolmoAct2's; `GET /act`, `/healthz` and
`/metrics` are for people and monitors. Stateless: an answer depends on its question alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from molmoact_data.errors import UserError
from molmoact_data.policies import ActionChunk, Observation, Policy, PredictionFailed
from molmoact_robot.evaluation.versions import package_version
from molmoact_robot.serving import fields
from molmoact_robot.serving.config import ServeConfig
from molmoact_robot.serving.metrics import Metrics
from molmoact_robot.serving.protocol import (
    NO_ACTION,
    BadFrame,
    Refused,
    from_json,
    pack,
    to_json,
    unpack,
)
from molmoact_robot.serving.scheduler import BUSY, WAITING_PER_CLIENT, Scheduler

logger = logging.getLogger(__name__)

PROTOCOL = 1
INTERNAL = "internal"
STATUS = {"busy": 429, "unauthorized": 401, "too_large": 413, "closing": 503, INTERNAL: 500}
"""HTTP status of a refusal by name; every other refusal is 400, and an answer that is no action 422."""


class PolicyServer:
    """Serves one policy inside a running event loop."""

    def __init__(self, policy: Policy, config: ServeConfig) -> None:
        self._policy, self._config = policy, config
        own = () if config.own_fields is None else (config.own_fields,)
        self._families = (*own, *fields.KNOWN)
        self._metrics = Metrics()
        self._runner: web.AppRunner | None = None
        self._sockets: set[web.WebSocketResponse] = set()
        self.metadata = handshake(policy, config, self._families)

    async def start(self) -> int:
        """Warm the model up, then listen; returns the port. Raises `UserError` where it is taken."""
        self._scheduler: Scheduler[ActionChunk] = Scheduler()
        await self._scheduler.run("warm-up", self._warm_up)
        app = web.Application(client_max_size=self._config.max_request_bytes)
        app.router.add_get("/", self._websocket)
        app.router.add_post("/act", self._act)
        app.router.add_get("/act", self._describe)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics_page)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._config.host, self._config.port)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            raise UserError(
                f"cannot listen on {self._config.host}:{self._config.port}: {error.strerror}. "
                "Choose another --port (0 = any free one)."
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        self._scheduler.close()
        for socket in list(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY)
        if self._runner is not None:
            await self._runner.cleanup()

    # --- openpi -------------------------------------------------------------------------------------

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._unauthorized(request):
            return refusal
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return web.Response(text="molmoact speaks WebSocket here; see /act and /healthz.\n")
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=self._config.max_request_bytes, heartbeat=None, timeout=1.0
        )
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            await socket.send_bytes(pack(self.metadata))
            await self._converse(socket, f"ws-{id(socket)}")
        except ConnectionError:
            logger.info("a client left while it was answered")
        finally:
            self._sockets.discard(socket)
        return socket

    async def _converse(self, socket: web.WebSocketResponse, client: str) -> None:
        """Read all the time, so that pings are answered while the model thinks; answer in order, beside it."""
        waiting: asyncio.Queue[bytes] = asyncio.Queue(WAITING_PER_CLIENT)
        answering = asyncio.create_task(self._answer_in_order(socket, client, waiting))
        try:
            async for message in socket:
                if message.type != WSMsgType.BINARY:
                    await socket.send_str(str(Refused("bad_frame", "frames are binary msgpack")))
                    continue
                try:
                    waiting.put_nowait(message.data)
                except asyncio.QueueFull:
                    self._metrics.answers["openpi", BUSY.name] += 1
                    await socket.send_str(str(BUSY))
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _answer_in_order(
        self, socket: web.WebSocketResponse, client: str, waiting: asyncio.Queue[bytes]
    ) -> None:
        before_ms: float | None = None
        while not socket.closed:
            frame = await waiting.get()
            began = time.perf_counter()
            try:
                answer = await self._answer(client, "openpi", frame, unpack)
            except Refused as refused:
                await socket.send_str(str(refused))
                if refused.name == INTERNAL:
                    await socket.close(code=WSCloseCode.INTERNAL_ERROR)
                continue
            if before_ms is not None:
                answer["server_timing"]["prev_total_ms"] = before_ms
            await socket.send_bytes(pack(answer))
            before_ms = 1000 * (time.perf_counter() - began)

    # --- MolmoAct2 ----------------------------------------------------------------------------------

    async def _act(self, request: web.Request) -> web.Response:
        if refusal := self._unauthorized(request):
            return refusal
        client = request.headers.get("X-Client-Id") or f"http-{request.remote}"
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._http_error(
                Refused("too_large", f"at most {self._config.max_request_bytes} bytes per request")
            )
        try:
            answer = await self._answer(client, "http", body, from_json)
        except Refused as refused:
            return self._http_error(refused)
        answer["dt_ms"] = answer["server_timing"]["infer_ms"]
        return web.Response(body=to_json(answer), content_type="application/json")

    async def _describe(self, request: web.Request) -> web.Response:
        if refusal := self._unauthorized(request):
            return refusal
        return web.Response(body=to_json(self.metadata), content_type="application/json")

    # --- monitors -----------------------------------------------------------------------------------

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _metrics_page(self, request: web.Request) -> web.Response:
        if refusal := self._unauthorized(request):
            return refusal
        labels = {k: str(self.metadata[k]) for k in ("version", "family", "sha256")}
        text = self._metrics.text(
            labels, waiting=self._scheduler.num_waiting, clients=len(self._sockets)
        )
        return web.Response(text=text, content_type="text/plain")

    # --- both ---------------------------------------------------------------------------------------

    async def _answer(
        self, client: str, protocol: str, raw: bytes, decode: Callable[[bytes], dict[str, Any]]
    ) -> dict[str, Any]:
        """Decode, ask, encode. Raises `Refused`; everything is counted by name."""
        received = time.perf_counter()
        self._metrics.bytes_received += len(raw)
        try:
            answer = await self._ask(client, raw, decode, received)
        except Refused as refused:
            self._metrics.answers[protocol, refused.name] += 1
            raise
        self._metrics.answers[protocol, "answered"] += 1
        return answer

    async def _ask(
        self, client: str, raw: bytes, decode: Callable[[bytes], dict[str, Any]], received: float
    ) -> dict[str, Any]:
        try:
            request = fields.parse(decode(raw), self._families, self._policy.info)
        except BadFrame as error:
            raise Refused("bad_frame", str(error)) from error
        decoded = time.perf_counter()

        def work() -> ActionChunk:
            return self._policy.act(request.observation, trace=request.trace)

        try:
            chunk, waited = await self._scheduler.run(client, work, request.deadline_s)
        except PredictionFailed as error:
            raise Refused(NO_ACTION, str(error)) from error
        except Refused:
            raise
        except UserError as error:
            raise Refused("wrong_request", str(error)) from error
        except Exception as error:
            logger.exception("the model failed")
            raise Refused(INTERNAL, f"{type(error).__name__}; see the server's log") from error
        done = time.perf_counter()
        model_s = done - decoded - waited
        self._metrics.add_seconds({"queue": waited, "model": model_s, "whole": done - received})
        timing = {
            "infer_ms": 1000 * model_s,
            "queue_ms": 1000 * waited,
            "decode_ms": 1000 * (decoded - received),
            **{f"{stage}_ms": 1000 * seconds for stage, seconds in chunk.seconds.items()},
        }
        return encode_answer(chunk, request.observation) | {
            "age_ms": 1000 * (done - received),
            "server_timing": timing,
        }

    def _warm_up(self) -> ActionChunk:
        """One answer about nothing, so that the first robot does not pay for it."""
        info = self._policy.info
        blank = np.zeros((256, 256, 3), np.uint8)
        observation = Observation(
            images={str(n): blank for n in range(info.num_cameras)},
            instruction="warm up",
            state=None if info.state_dim is None else np.zeros(info.state_dim, np.float32),
        )
        try:
            return self._policy.act(observation)
        except PredictionFailed as error:
            logger.info("the warm-up's answer was no action (%s)", error.reason)
            return ActionChunk(np.zeros((info.horizon, info.action_dim), np.float32))

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return self._http_error(Refused("unauthorized", "pages of other sites may not ask"))
        key = self._config.api_key
        given = request.headers.get("Authorization", "")
        if key is None or any(
            hmac.compare_digest(given.encode(), f"{scheme} {key}".encode())
            for scheme in ("Api-Key", "Bearer")
        ):
            return None
        return self._http_error(
            Refused("unauthorized", "send the header `Authorization: Api-Key KEY`")
        )

    @staticmethod
    def _http_error(refused: Refused) -> web.Response:
        status = 422 if refused.name == NO_ACTION else STATUS.get(refused.name, 400)
        return web.Response(
            body=to_json({"error": str(refused)}), status=status, content_type="application/json"
        )


def handshake(
    policy: Policy, config: ServeConfig, families: tuple[fields.Fields, ...]
) -> dict[str, Any]:
    """What a client learns before it asks: everything that must agree with the robot."""
    info = policy.info
    return {
        "server": "molmoact",
        "version": package_version("molmoact") or "source",
        "protocol": PROTOCOL,
        "family": info.family,
        "checkpoint": info.checkpoint,
        "sha256": info.sha256,
        "statistics_key": info.statistics_key,
        "action_dim": info.action_dim,
        "horizon": info.horizon,
        "state_dim": info.state_dim,
        "num_cameras": info.num_cameras,
        "extra": dict(info.extra),
        "accepts": fields.describe(families),
        **config.declared,
    }


def encode_answer(chunk: ActionChunk, observation: Observation) -> dict[str, Any]:
    """A chunk as it travels; `client.decode_answer` is the inverse.

    `actions` is the only array: openpi's `ActionChunkBroker` cuts every array it finds into steps.
    """
    answer: dict[str, Any] = {
        "actions": np.ascontiguousarray(chunk.actions_HD, dtype=np.float32),
        "text": chunk.text,
        "num_tokens": chunk.num_tokens,
        "step": observation.step,
    }
    if chunk.trace_P2 is not None:
        answer["trace"] = np.asarray(chunk.trace_P2, dtype=np.float64).tolist()
    if chunk.depth_codes is not None:
        answer["depth_codes"] = np.asarray(chunk.depth_codes, dtype=np.int64).tolist()
    return answer


async def serve_until_told(
    policy: Policy, config: ServeConfig, listening: Callable[[int], None]
) -> None:
    """Serve until SIGINT or SIGTERM; `listening(port)` is called when robots may come."""
    server, stop = PolicyServer(policy, config), asyncio.Event()
    port = await server.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listening(port)
    await stop.wait()
    await server.stop()


@contextlib.contextmanager
def in_background(policy: Policy, config: ServeConfig) -> Iterator[str]:
    """Serve from a thread of this process; yields the WebSocket address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server", daemon=True)
    thread.start()
    server = PolicyServer(policy, config)
    try:
        port = asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield f"ws://{config.host}:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
