"""Secrets in what is written down and said: every way in which one is given, every place where it could go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from molmoact_data.config import as_dict
from molmoact_data.redaction import redact, redacted

SECRET = "hunter2-PW"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (f"http://user:{SECRET}@host/v1?api_key={SECRET}", "http://***@host/v1?api_key=***"),
        (f"http://{SECRET}@host/v1", "http://***@host/v1"),
        (f"http://user:{SECRET}@@host:80/v1", "http://***@host:80/v1"),
        (f"s3://key:{SECRET}@bucket/a/b", "s3://***@bucket/a/b"),
        (f"https://h/v1?x={SECRET}&y={SECRET}", "https://h/v1?x=***&y=***"),
        (f"https://h/v1?{SECRET}", "https://h/v1?***"),
        (f"https://h/v1#access_token={SECRET}", "https://h/v1#access_token=***"),
        (f"cannot reach 'http://u:{SECRET}@h/v1': refused", "cannot reach 'http://***@h/v1': refused"),
        (f"a http://u:{SECRET}@h b http://v:{SECRET}@i c", "a http://***@h b http://***@i c"),
        (f"--azure_password={SECRET}", "--azure_password=***"),
        (f"--db-password {SECRET}", "--db-password ***"),
        (f"AWS_SECRET_ACCESS_KEY={SECRET}", "AWS_SECRET_ACCESS_KEY=***"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        ("hf_" + "a1B2" * 8, "***"),
        ("key sk-" + "a1B2" * 8 + ".", "key ***."),
        ("AKIA" + "A1B2" * 4, "***"),
    ],
)  # fmt: skip
def test_what_only_its_owner_may_know_is_hidden(given: str, left: str) -> None:
    assert redact(given) == left
    assert redact(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "/data/run #2/episodes", "s3://bucket/prefix", "s3://bucket/data#main", "lerobot/pusht", "user@host:folder",
        "http://localhost:8000/v1", "runs/a@b", "point to the robot's gripper", "unknown action token 'x' at row 0",
        "the token <DEPTH_1> is text", "hf_dataset", "C:\\data", "special tokens: 5", "max_tokens=128",
    ],
)  # fmt: skip
def test_anything_else_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "HUGGING_FACE_HUB_TOKEN"],
)  # fmt: skip
def test_tokens_of_the_environment_are_known_by_value(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "Zq8-very-own")
    assert redact("refused: Zq8-very-own is not valid") == "refused: *** is not valid"


def test_words_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "enabled")
    monkeypatch.setenv("MY_TOKEN_FILE", "/run/secrets/token")
    assert redact("enabled by /run/secrets/token") == "enabled by /run/secrets/token"


def test_keys_that_name_a_secret_hide_their_value() -> None:
    given: dict[str, Any] = {
        "api_key": SECRET, "nested": [{"password": SECRET, "name": "x"}], "max_tokens": 5,
        "api_key_variable": None,
    }  # fmt: skip
    assert redacted(given) == {
        "api_key": "***", "nested": [{"password": "***", "name": "x"}], "max_tokens": 5,
        "api_key_variable": None,
    }  # fmt: skip


def secret_settings() -> list[tuple[str, Any]]:
    """Every setting of a run that is a free text, given with a secret in it."""
    from pipelines.job import LabelConfig

    url = f"http://user:{SECRET}@host/v1?api_key={SECRET}"
    texts = (
        "pointer_url",
        "pointer_checkpoint",
        "depth_checkpoint",
        "vqvae",
        "pointer_calibration",
        "pointer_prompt",
    )
    base = {"depth": "none", "pointer": "server", "pointer_url": "http://h/v1"}
    return [(name, LabelConfig(**(base | {name: url}))) for name in texts]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "config"), secret_settings())
def test_no_setting_of_labels_is_recorded_with_its_secret(name: str, config: Any) -> None:
    recorded = json.dumps(as_dict(config))
    assert SECRET not in recorded
    assert "http://***@host/v1?api_key=***" in recorded, name


def test_a_run_against_a_server_with_a_password_leaves_none_of_it(
    tmp_path: Path, molmoact: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The error line is where a password is seen first: nothing answers there."""
    url = f"http://user:{SECRET}@127.0.0.1:9/v1?api_key={SECRET}"
    code, out, err = molmoact(
        "preprocess", "--dataset-path", "examples/demo_dataset", "--output-path", tmp_path / "out",
        "--depth", "none", "--pointer", "server", "--pointer-url", url,
    )  # fmt: skip
    assert code == 2
    assert "127.0.0.1:9/v1" in err
    assert SECRET not in out + err + caplog.text
    assert not (tmp_path / "out").exists()
