"""How a policy is served, from flags and files; needs nothing heavy, so that mistakes are told at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from molmoact_data.config import build, load_yaml
from molmoact_data.errors import UserError
from molmoact_robot.client import API_KEY_VARIABLE
from molmoact_robot.serving.fields import Fields


@dataclass(frozen=True)
class ServeConfig:
    """How a policy is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 = any free one."""
    api_key: str | None = None
    """None = nobody is asked for one."""
    max_request_bytes: int = 32 * 2**20
    declared: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the handshake that no checkpoint knows: units, gripper convention, rotation."""
    own_fields: Fields | None = None
    """The robot's own observation keys, looked for first."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0..65535, got {self.port}")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("the API key is empty")


def check_can_listen(host: str, port: int) -> None:
    """Raises `UserError` where nobody could listen there; asked before a model is loaded."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: ports are 0..65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UserError(
            f"--host {host}: {error.strerror}. 127.0.0.1 is this machine alone, 0.0.0.0 every network it is in."
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            what = "--port" if error.errno == errno.EADDRINUSE else "--host or --port"
            raise UserError(
                f"cannot listen on {host}:{port}: {error.strerror}. Choose another {what}."
            ) from error


def read_api_key(file: Path | None) -> str | None:
    """From a file, or from `API_KEY_VARIABLE`; never from a flag, which other users of the machine could read."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE)
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the API key in {file}: {error}.") from error
    if not key:
        raise UserError(f"{file} is empty; it must hold the API key.")
    return key


def read_fields(path: Path) -> Fields:
    """Your robot's own keys from YAML: `images`, `state`, `prompt`, `layout`."""
    return build(Fields, {"name": path.stem, **load_yaml(path)})
