"""Fixtures of more than one test file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any

if find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports mujoco

import huggingface_hub.constants  # noqa: F401 - read the environment before a test changes it
import pytest
from huggingface_hub.utils import close_session
from hypothesis import HealthCheck, settings
from made_commands import Molmoact
from made_hub import Hub, RunningHub
from made_priority import be_ordinary

import cli

# A property is true or not; how long an example takes says something about the machine.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that `slow.txt` names their marker."""
    lines = (Path(__file__).parent / "slow.txt").read_text().splitlines()
    slow = {line for line in lines if not line.startswith("#")}
    for item in items:
        if item.nodeid.partition("[")[0].removeprefix("tests/") in slow:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def make_output(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a finished output: `make_output("name", source=..., action_bins=...)`."""
    from made_outputs import write_output

    def make(name: str = "out", **settings: Any) -> Path:
        return write_output(tmp_path / name, **settings)

    return make


@pytest.fixture
def molmoact(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Molmoact:
    """`molmoact("parse", path, ...)`: the real entry point in this process -> exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["molmoact", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running server that speaks the Hub's endpoints; `hub.url` is its address."""
    # huggingface_hub reads the variable once per process and keeps its sessions: undo other tests.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    close_session()
    with RunningHub() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        # The server speaks LFS, not Xet; the variable is for child processes.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield running


@pytest.fixture(autouse=True)
def no_real_time_priority_left_behind() -> Iterator[None]:
    """Some tests encode AV1, by LeRobot's own writer too."""
    yield
    be_ordinary()


@pytest.fixture(autouse=True)
def no_offline_session_left_behind():
    """huggingface_hub caches its sessions, the refusing ones of an offline test included."""
    yield
    close_session()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a real S3-compatible server."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket; credentials are made up, the endpoint comes from the environment."""
    import fsspec
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir("robots")
    yield "s3://robots"
    s3fs.S3FileSystem.clear_instance_cache()
    fsspec.filesystem("s3").rm("robots", recursive=True)


@pytest.fixture
def no_credentials(bucket: str, tmp_path: Path) -> Iterator[None]:
    """Nobody is logged in while the test runs."""
    import s3fs

    with pytest.MonkeyPatch.context() as nobody:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            nobody.delenv(name, raising=False)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            nobody.setenv(name, str(tmp_path / "none"))
        nobody.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        yield


@pytest.fixture(autouse=True)
def our_log_is_heard() -> None:
    """Every test hears what a command would print, whatever ran before it in the same process.

    Libraries that configure logging when they are imported switch off the loggers that exist by then,
    and the level of ours is set by whichever command ran first.
    """
    for package in cli.OURS:
        logging.getLogger(package).setLevel(logging.INFO)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in cli.OURS:
            logger.disabled = False
            logger.propagate = True
