"""A picture of a web example as bytes: from its set's files, or fetched politely from its address, once.

What cannot be had is a `PictureRejected` with a named reason, never another picture. Fetched pictures and the
reasons of dead links are kept in a folder, so that a run that is killed asks no address twice.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

from molmoact_data.files.folders import write_bytes, write_json
from molmoact_data.sources.images import NotEightBitError, as_rgb

if TYPE_CHECKING:
    import httpx

Reason = Literal[
    "link_dead",
    "link_refused",
    "link_busy",
    "too_large",
    "not_a_picture",
    "not_eight_bit",
    "other_content",
    "file_missing",
]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_CHUNK = 1 << 16
_STRIPES = 256


class PictureRejected(Exception):
    """This picture cannot be had."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class FetchConfig:
    """How politely pictures are fetched."""

    per_host: int = 4
    """Requests under way at one host at a time."""
    tries: int = 4
    """Of one address; 429 and 5xx are asked again, after what the host says or else after a growing pause."""
    timeout_s: float = 20.0
    """For a connection, and between two pieces of an answer."""
    longest_wait_s: float = 60.0
    """A host that asks for a longer pause is left alone: its picture is rejected as `link_busy`."""
    max_bytes: int = 30_000_000
    """Of one picture."""
    max_pixels: int = 100_000_000
    """Of one picture, before it is decoded."""
    max_redirects: int = 5
    """Of one address."""
    private_hosts: tuple[str, ...] = ()
    """`host:port` of mirrors in your own network; no other private address is ever asked, not by redirect either."""
    user_agent: str = "molmoact (dataset preparation)"
    """What the hosts are told."""

    def __post_init__(self) -> None:
        for name in ("per_host", "tries", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class PictureFetcher:
    """Pictures by address, kept in `folder`. One per process; threads share it."""

    def __init__(
        self, folder: Path, config: FetchConfig, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.folder, self.config = folder, config
        self._sleep = sleep
        self._hosts: dict[str, threading.Semaphore] = defaultdict(
            lambda: threading.Semaphore(config.per_host)
        )
        self._lock = threading.Lock()
        # Two examples may share a picture: who comes second waits and finds it kept.
        self._addresses = [threading.Lock() for _ in range(_STRIPES)]

    def fetch(self, url: str, sha256: str = "") -> bytes:
        """The bytes behind an address. Raises `PictureRejected`; the verdict is remembered."""
        kept = self._place(url)
        with self._addresses[int(kept.name[-4:], 16) % _STRIPES]:
            return self._fetch_or_find(url, sha256, kept)

    def _fetch_or_find(self, url: str, sha256: str, kept: Path) -> bytes:
        if kept.is_file():
            return _checked_hash(kept.read_bytes(), sha256)
        verdict = kept.with_suffix(".json")
        if verdict.is_file():
            told = json.loads(verdict.read_text(encoding="utf-8"))
            raise PictureRejected(told["reason"], told["message"])
        try:
            content = self._ask_again(url)
            check_picture(content, self.config.max_pixels)
        except PictureRejected as rejected:
            write_json(
                verdict, {"url": url, "reason": rejected.reason, "message": rejected.message}
            )
            raise
        write_bytes(kept, content)
        return _checked_hash(content, sha256)

    @cached_property
    def _client(self) -> httpx.Client:
        """One for all threads: connections to a host are kept, and certificates are read once."""
        import httpx

        headers = {"User-Agent": self.config.user_agent, "Accept": "image/*"}
        return httpx.Client(timeout=self.config.timeout_s, headers=headers)

    def forget_verdicts(self) -> int:
        """Delete what is remembered of dead links, so that they are asked once more; returns how many."""
        verdicts = list(self.folder.glob("*/*.json"))
        for path in verdicts:
            path.unlink()
        return len(verdicts)

    def _place(self, url: str) -> Path:
        name = hashlib.sha256(url.encode()).hexdigest()
        (self.folder / name[:2]).mkdir(parents=True, exist_ok=True)
        return self.folder / name[:2] / name

    def _ask_again(self, url: str) -> bytes:
        status = 0
        for attempt in range(1, self.config.tries + 1):
            answer = self._follow(url)
            if isinstance(answer, bytes):
                return answer
            status = answer.status
            wait_s = 2.0 ** (attempt - 1) if answer.retry_after_s is None else answer.retry_after_s
            if attempt == self.config.tries or wait_s > self.config.longest_wait_s:
                break
            # A little longer than asked, so that threads do not come back together.
            self._sleep(wait_s * random.uniform(1.0, 1.25))
        raise PictureRejected("link_busy", f"status {status} after {attempt} tries")

    def _follow(self, url: str) -> bytes | _Busy:
        for _ in range(self.config.max_redirects + 1):
            answer = self._ask(url)
            if not isinstance(answer, str):
                return answer
            url = answer
        raise PictureRejected("link_dead", f"more than {self.config.max_redirects} redirects")

    def _ask(self, url: str) -> bytes | _Busy | str:
        """The content, a request to come back later, or where the picture has moved."""
        host = _host(url)
        self._refuse_private(url)
        with self._turn(host), _network_errors(url), self._client.stream("GET", url) as response:
            self._refuse_private_peer(url, response)
            if response.status_code in _MOVED:
                return urljoin(url, response.headers.get("location", ""))
            if response.status_code in _BUSY:
                return _Busy(response.status_code, _seconds(response.headers.get("retry-after")))
            if response.status_code != 200:
                raise PictureRejected("link_dead", f"status {response.status_code}")
            return self._read(response)

    def _read(self, response: Any) -> bytes:
        announced = int(response.headers.get("content-length") or 0)
        content = bytearray()
        for piece in response.iter_bytes(_CHUNK) if announced <= self.config.max_bytes else ():
            content += piece
            if len(content) > self.config.max_bytes:
                break
        if max(announced, len(content)) > self.config.max_bytes:
            raise PictureRejected("too_large", f"more than {self.config.max_bytes:,} bytes")
        return bytes(content)

    @contextmanager
    def _turn(self, host: str) -> Iterator[None]:
        with self._lock:
            turns = self._hosts[host]
        with turns:
            yield

    def _refuse_private(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PictureRejected(
                "link_refused", f"{parts.scheme or 'no'} address, not http or https"
            )
        if _host(url) in self.config.private_hosts:
            return
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError, UnicodeError) as error:
            raise PictureRejected("link_dead", f"no such host: {parts.hostname}") from error
        for *_, address in found:
            _refuse_private_address(str(address[0]))

    def _refuse_private_peer(self, url: str, response: Any) -> None:
        """The address that was really connected to: a name may have been given another one in between."""
        stream = response.extensions.get("network_stream")
        peer = stream.get_extra_info("server_addr") if stream is not None else None
        if peer is not None and _host(url) not in self.config.private_hosts:
            _refuse_private_address(str(peer[0]))


@dataclass(frozen=True)
class _Busy:
    status: int
    retry_after_s: float | None


def _seconds(retry_after: str | None) -> float | None:
    """The Retry-After header: seconds, or a date."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise PictureRejected("link_dead", "no answer in time") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise PictureRejected("link_dead", f"{type(error).__name__}: {error}"[:200]) from error


def _host(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise PictureRejected("link_refused", "the port is no number") from error
    return f"{parts.hostname}:{port or (443 if parts.scheme == 'https' else 80)}"


def _refuse_private_address(address: str) -> None:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    if not (mapped or ip).is_global:
        raise PictureRejected("link_refused", f"{address} is no public address")


def _checked_hash(content: bytes, sha256: str) -> bytes:
    if sha256 and hashlib.sha256(content).hexdigest() != sha256.lower():
        raise PictureRejected("other_content", "the sha256 is not the one that the set names")
    return content


def check_picture(content: bytes, max_pixels: int) -> tuple[int, int]:
    """(width, height) in pixels of whole, decodable picture bytes. Raises `PictureRejected`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise PictureRejected("too_large", f"{image.width} x {image.height} pixels")
            as_rgb(image)
            return image.width, image.height
    except NotEightBitError as error:
        raise PictureRejected("not_eight_bit", str(error)) from error
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise PictureRejected("not_a_picture", f"{error}"[:200]) from error
