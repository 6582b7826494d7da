"""Files of a model folder that were edited or damaged: one line that names the field, before memory is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz.models import molmoact, molmoact2
from made_molmo import config_fields

from molmoact_data.errors import UserError
from molmoact_data.policies import load_policy
from molmoact_train.families.molmo.config import read_config

WRITE: dict[str, Callable[[Path], Path]] = {"molmoact": molmoact, "molmoact2": molmoact2}


@pytest.fixture(scope="module", params=list(WRITE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITE[request.param](tmp_path_factory.mktemp("models") / request.param)


def put(value: Any, place: str, new: Any) -> None:
    *parents, last = place.split(".")
    for name in parents:
        value = value[name]
    value[last] = new


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("vit_config.num_hidden_layers", 2**31),
        ("vit_config.hidden_size", 10**30),
        ("vit_config.hidden_size", "16"),
        ("vit_config.head_dim", True),
        ("vit_config.residual_dropout", 1e308),
        ("vit_config.layer_norm_eps", float("nan")),
        ("vit_config.image_default_input_size", 56),
        ("adapter_config.vit_layers", {"x": 1}),
        ("adapter_config", [1]),
        ("image_patch_id", "x"),
    ],
)
def test_a_field_that_cannot_be_is_named(
    folder: Path, tmp_path: Path, place: str, value: Any
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    fields = json.loads(path.read_text())
    put(fields, place, value)
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"config\.json") as refused:
        load_policy(tmp_path / "model", device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"max_crops": "x"}']
)
@pytest.mark.parametrize("kind", ["config.json", "tokenizer.json", "pictures"])
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, kind: str, content: bytes) -> None:
    shutil.copytree(folder, tmp_path / "model")
    name = kind
    if kind == "pictures":
        name = "processor_config.json" if folder.name == "molmoact2" else "preprocessor_config.json"
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_policy(tmp_path / "model", device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("q01", [None] * 7),
        ("q01", [2.0] * 7),
        ("q99", [1.0] * 6),
        ("q99", ["1"] * 7),
        ("mask", 1),
        ("mask", [1] * 7),
        ("mask", [True] * 6),
    ],
)
def test_numbers_that_actions_cannot_be_scaled_with(
    folder: Path, tmp_path: Path, place: str, value: Any
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    name = "norm_stats.json" if folder.name == "molmoact2" else "config.json"
    where = (
        "metadata_by_tag.robot.action_stats"
        if folder.name == "molmoact2"
        else "norm_stats.robot.action"
    )
    fields = json.loads((tmp_path / "model" / name).read_text())
    put(fields, f"{where}.{place}", value)
    (tmp_path / "model" / name).write_text(json.dumps(fields))
    with pytest.raises(UserError, match="robot"):
        load_policy(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    ("place", "value"),
    [("num_attention_heads", 0), ("hidden_size", "64"), ("hidden_size", 65), ("qkv_bias", 1),
     ("vision_backbone", 3), ("vision_backbone.image_emb_dim", -1), ("rope_theta", None)],
)  # fmt: skip
def test_of_a_pointer(tmp_path: Path, place: str, value: Any) -> None:
    fields = json.loads(json.dumps(config_fields(300)))
    put(fields, place, value)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)
