"""`molmoact vqvae ...` from the outside: files in, files out, exit codes, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from golden import GOLDEN, ROOT, needs_golden
from typer.testing import CliRunner

import cli
from molmoact_data.errors import LimitExceeded, UserError
from molmoact_data.text import tokens
from vqvae import checkpoint as checkpoint_io, files
from vqvae.checkpoint import Checkpoint
from vqvae.codec import VQVAECodec
from vqvae.config import Geometry
from vqvae.model import VQVAE
from vqvae.recipe import REFERENCE, RELEASED

EMBEDDED = ROOT / "molmoact_data" / "teachers" / "weights" / "embedded_vqvae.safetensors"


def invoke(*arguments: object) -> Any:
    """A command that must succeed."""
    result = CliRunner().invoke(cli.app, ["vqvae", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    model = VQVAE(Geometry(hidden_dim=2, code_dim=8, codebook_size=16, num_res_blocks=1))
    for buffer in (model.codebook, model.cluster_size, model.embed_sum):
        buffer.normal_()
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoint_io.save_ours(path, Checkpoint(model.eval(), RELEASED))
    return path


@pytest.fixture
def depth() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 30, 40), dtype=np.uint8)


@needs_golden
@pytest.mark.parametrize(
    ("flag", "value_range"), [([], "signed"), (["--input-range", "unit"], "unit")]
)
def test_encode_equals_the_reference(tmp_path: Path, flag: list[str], value_range: str) -> None:
    golden = np.load(GOLDEN / "vqvae" / "io.npz")
    np.save(tmp_path / "depth.npy", golden["depth"])
    invoke(
        "encode", "--checkpoint", GOLDEN / "vqvae" / "vae-final.pt", "--input-path", tmp_path / "depth.npy",
        "--output-path", tmp_path / "codes.npy", *flag,
    )  # fmt: skip
    codes = np.load(tmp_path / "codes.npy").reshape(-1, 10, 10)
    decided = golden[f"margin_{value_range}"] > 1e-3
    np.testing.assert_array_equal(codes[decided], golden[f"codes_{value_range}"][decided])


@needs_golden
def test_conversion_both_ways_keeps_the_codes_of_a_released_file(tmp_path: Path) -> None:
    invoke(
        "convert",
        "--input-path",
        GOLDEN / "vqvae" / "vae-final.pt",
        "--output-path",
        tmp_path / "a.safetensors",
    )
    invoke(
        "convert", "--input-path", tmp_path / "a.safetensors", "--output-path", tmp_path / "b.pt"
    )
    depth = np.load(GOLDEN / "vqvae" / "io.npz")["depth"][:4]
    paths = (GOLDEN / "vqvae" / "vae-final.pt", tmp_path / "a.safetensors", tmp_path / "b.pt")
    original, ours, back = (VQVAECodec(path).encode(depth) for path in paths)
    np.testing.assert_array_equal(original, ours)
    np.testing.assert_array_equal(original, back)


def test_conversion_keeps_the_codes(tiny: Path, depth: np.ndarray, tmp_path: Path) -> None:
    result = invoke(
        "convert", "--input-path", tiny, "--output-path", tmp_path / "tiny.pt", "--json"
    )
    assert json.loads(result.stdout)["output"] == str(tmp_path / "tiny.pt")
    state = torch.load(tmp_path / "tiny.pt", weights_only=True)
    assert state, "the released layout is a file that torch reads"
    converted = VQVAECodec(tmp_path / "tiny.pt").encode(depth)
    np.testing.assert_array_equal(converted, VQVAECodec(tiny).encode(depth))


def test_encode_and_decode_as_tokens(tiny: Path, depth: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "depth.png"), depth[0])
    common = ("encode", "--checkpoint", tiny, "--input-path", tmp_path / "depth.png")
    invoke(*common, "--output-path", tmp_path / "codes.txt")
    text = (tmp_path / "codes.txt").read_text().strip()
    assert text == tokens.encode_depth(VQVAECodec(tiny).encode(depth[:1])[0].tolist())

    for name, spelled in (("a", text), ("b", " ".join(map(str, tokens.decode_depth(text)[0])))):
        invoke(
            "decode",
            "--checkpoint",
            tiny,
            "--tokens",
            spelled,
            "--output-path",
            tmp_path / f"{name}.npy",
        )
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    np.testing.assert_array_equal(a, b)
    invoke(
        "decode",
        "--checkpoint",
        tiny,
        "--input-path",
        tmp_path / "codes.txt",
        "--output-path",
        tmp_path / "c.png",
    )
    picture = cv2.imread(str(tmp_path / "c.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(picture, np.rint(a[0] * 255).astype(np.uint8))


def test_encode_says_what_it_did(tiny: Path, depth: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", depth)
    output = tmp_path / "c.npy"
    result = invoke(
        "encode", "--checkpoint", tiny, "--input-path", tmp_path / "d.npy", "--output-path", output,
        "--depth-recipe", "reference", "--json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert (report["maps"], report["codes_per_map"]) == (2, 100)
    assert (report["codec"]["range"], report["codec"]["resize"]) == ("unit", "bilinear")
    expected = VQVAECodec(tiny, recipe=REFERENCE).encode(depth)
    np.testing.assert_array_equal(np.load(output), expected)


def test_sixteen_bit_and_float_depth_is_scaled_per_map(tmp_path: Path) -> None:
    from molmoact_data.labels.depth_scaling import scale_to_u8

    raw = np.random.default_rng(0).integers(300, 60000, (2, 5, 6), dtype=np.uint16)
    np.save(tmp_path / "d.npy", raw)
    expected = scale_to_u8(raw.astype(np.float32))
    np.testing.assert_array_equal(files.read_depth_u8(tmp_path / "d.npy"), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no codes found"),
        ("<DEPTH_START><DEPTH_1>oops<DEPTH_END>", "between the depth tokens stands 'oops'"),
        ("<DEPTH_START><DEPTH_1><DEPTH_END><DEPTH_START><DEPTH_END>", "differ in length"),
    ],
)
def test_malformed_codes_are_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        files.parse_codes(text)


def test_integers_are_accepted_however_they_are_written() -> None:
    for text in ("1 2 3", "1,2,3", "[1, 2, 3]", "1\n2\n3"):
        assert files.parse_codes(text).tolist() == [[1, 2, 3]]


def test_user_errors_of_the_commands(tiny: Path, tmp_path: Path) -> None:
    def error_of(*arguments: object) -> str:
        result = CliRunner().invoke(cli.app, ["vqvae", *map(str, arguments)])
        assert isinstance(result.exception, UserError), result.output
        return str(result.exception)

    output = tmp_path / "x.npy"
    assert "no depth to encode" in error_of(
        "encode",
        "--checkpoint",
        tiny,
        "--input-path",
        tmp_path / "none.npy",
        "--output-path",
        output,
    )
    assert "either --tokens TEXT or --input" in error_of(
        "decode", "--checkpoint", tiny, "--output-path", output
    )
    assert "exists. Add --overwrite" in error_of(
        "convert", "--input-path", tiny, "--output-path", tiny
    )
    assert "write .pt for" in error_of(
        "convert", "--input-path", tiny, "--output-path", tmp_path / "x.bin"
    )
    assert "no data to measure on" in error_of("eval", "--checkpoint", tiny)
    assert "Did you mean 'debug'" in error_of(
        "train", "--output-path", tmp_path / "r", "--preset", "debg"
    )
    assert not (tmp_path / "r").exists()


def test_eval_reports_and_holds_to_min_codes(tiny: Path, tmp_path: Path) -> None:
    common = ("eval", "--checkpoint", tiny, "--data", "procedural:1:3", "--data", "procedural:1:4")
    result = invoke(*common, "--json", "--output-path", tmp_path / "sheet.png", "--min-codes", 1)
    report = json.loads(result.stdout)
    assert set(report) == {"all", "procedural"}
    assert report["all"]["num_maps"] == 16
    assert set(report["all"]["codes_changed_between_frames"]) == {
        "image_scaling",
        "steady_scaling",
        "episode_scaling",
    }
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[:2] == (640, 960)
    failed = CliRunner().invoke(cli.app, ["vqvae", *map(str, common), "--min-codes", "17"])
    assert isinstance(failed.exception, LimitExceeded), failed.output


def test_train_command_runs_and_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    plan = json.loads(
        invoke("train", "--preset", "debug", "--output-path", run, "--dry-run", "--json").stdout
    )
    assert plan["tokens_per_image"] == 16
    assert not run.exists()
    flags = ("train", "--output-path", run, "--json")
    done = json.loads(
        invoke(*flags, "--preset", "debug", "--lr", 2e-3, "--codebook-size", 8).stdout
    )
    assert done["step"] == done["num_steps"] == 10
    checkpoint = checkpoint_io.load(run)
    assert checkpoint.model.geometry.codebook_size == 8
    assert checkpoint.training["config"]["lr"] == 2e-3
    assert json.loads(invoke(*flags, "--resume").stdout)["step"] == 10


def test_the_embedded_codebook_is_alive_and_small() -> None:
    # Held to its card: a codebook that has collapsed, or a file that has grown, must not ship.
    from vqvae.depth.scenes import depth_maps

    assert EMBEDDED.stat().st_size < 3e6
    codec = VQVAECodec(EMBEDDED)
    assert codec.recipe == RELEASED
    assert (codec.codebook_size, codec.grid_hw) == (128, (10, 10))
    maps = depth_maps(123, 16, 320)
    codes = codec.encode(maps)
    assert len(np.unique(codes)) >= 100
    error = np.abs(codec.decode(codes) - maps.astype(np.float32) / 255).mean()
    assert error < 0.06
