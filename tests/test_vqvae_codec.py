"""The codec against the reference's own answers (golden/vqvae), and its recipes against plain formulas."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GOLDEN, needs_golden
from PIL import Image
from safetensors.torch import save_file

from molmoact_data.errors import UserError
from molmoact_data.labels.depth import DepthTokenizer
from vqvae import checkpoint as checkpoint_io
from vqvae.checkpoint import Checkpoint
from vqvae.codec import VQVAECodec
from vqvae.config import Geometry
from vqvae.model import VQVAE, nearest_code
from vqvae.recipe import REFERENCE, RELEASED, Recipe, encoder_input, from_encoder_range, resize_u8

TINY = Geometry(
    image_size=32, grid_size=4, codebook_size=16, code_dim=8, hidden_dim=4, num_res_blocks=1
)


def tiny_checkpoint(geometry: Geometry = TINY, recipe: Recipe = RELEASED) -> Checkpoint:
    torch.manual_seed(3)
    model = VQVAE(geometry)
    for buffer in (model.codebook, model.cluster_size, model.embed_sum):
        buffer.normal_()
    return Checkpoint(model.eval(), recipe, licence="Apache-2.0", training={"step": 7})


@pytest.fixture
def tiny_path(tmp_path: Path) -> Path:
    checkpoint_io.save_ours(tmp_path / "tiny.safetensors", tiny_checkpoint())
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def depth() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 56), dtype=np.uint8)


# The released file.


@needs_golden
@pytest.mark.parametrize("value_range", ["signed", "unit"])
def test_codes_and_reconstructions_equal_the_reference(value_range: str) -> None:
    golden = np.load(GOLDEN / "vqvae" / "io.npz")
    codec = VQVAECodec(
        GOLDEN / "vqvae" / "vae-final.pt", recipe=Recipe(range=value_range), batch_size=5
    )
    codes = codec.encode(golden["depth"])
    decided = golden[f"margin_{value_range}"].reshape(-1, 100) > 1e-3
    expected = golden[f"codes_{value_range}"].reshape(-1, 100)
    np.testing.assert_array_equal(codes[decided], expected[decided])
    assert decided.mean() > 0.99

    reference = golden[f"recon_{value_range}"].astype(np.float32)[:, 0]
    decoded = codec.decode(expected[: len(reference)])
    in_unit = (reference + 1) / 2 if value_range == "signed" else reference
    np.testing.assert_allclose(decoded, in_unit.clip(0, 1), atol=1e-3)  # stored as float16


@needs_golden
def test_released_file_defaults_to_the_range_of_its_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        codec = VQVAECodec(GOLDEN / "vqvae" / "vae-final.pt")
        assert codec.recipe == RELEASED
        assert not caplog.records
        wrong = VQVAECodec(GOLDEN / "vqvae" / "vae-final.pt", recipe="reference")
    assert wrong.recipe == REFERENCE
    assert "THE DEPTH RANGE LOOKS WRONG" in caplog.text


def test_the_default_geometry_is_the_released_one() -> None:
    """The shapes of the released file, as its authors' code states them."""
    shapes = {k: tuple(v.shape) for k, v in VQVAE(Geometry()).state_dict().items()}
    assert shapes["encoder.0.weight"] == (16, 1, 4, 4)
    assert shapes["encoder.12.weight"] == (512, 256, 1, 1)
    assert shapes["decoder.12.weight"] == (32, 16, 4, 4)
    assert shapes["codebook"] == (1, 128, 512)


# Recipes.


def test_nearest_takes_the_pixel_whose_cell_starts_there(depth: np.ndarray) -> None:
    rows = np.floor(np.arange(32) * 40 / 32).astype(int)
    columns = np.floor(np.arange(32) * 56 / 32).astype(int)
    expected = depth[0][rows][:, columns]
    np.testing.assert_array_equal(resize_u8(depth[0], 32, "nearest"), expected)


def test_reference_recipe_is_pil_bilinear_divided_by_255(depth: np.ndarray) -> None:
    pil = Image.fromarray(depth[1]).resize((32, 32), Image.BILINEAR)
    expected = torch.from_numpy(np.array(pil)).to(torch.float32).div(255)  # torchvision's ToTensor
    np.testing.assert_array_equal(encoder_input(depth, 32, REFERENCE)[1, 0], expected.numpy())


def test_signed_range_runs_from_minus_one_to_one_and_back(depth: np.ndarray) -> None:
    x = encoder_input(np.array([[[0, 255], [51, 204]]], np.uint8), 2, RELEASED)
    np.testing.assert_allclose(x[0, 0], [[-1, 1], [-0.6, 0.6]], atol=1e-6)
    for recipe in (RELEASED, REFERENCE):
        square = depth[:, :32, :32]
        back = from_encoder_range(encoder_input(square, 32, recipe)[:, 0], recipe)
        np.testing.assert_array_equal(np.rint(back * 255), square)


def test_unknown_recipes_name_what_exists(tiny_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'signed'"):
        Recipe(range="sined")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown depth recipe 'referense'"):
        VQVAECodec(tiny_path, recipe="referense")  # type: ignore[arg-type]


# The interface.


def test_codec_is_a_depth_tokenizer_of_its_own_geometry(tiny_path: Path, depth: np.ndarray) -> None:
    codec = VQVAECodec(tiny_path)
    assert isinstance(codec, DepthTokenizer)
    codes = codec.encode(depth)
    assert (codes.shape, codes.dtype) == ((3, 16), np.int64)
    assert codec.grid_hw == (4, 4)
    decoded = codec.decode(codes)
    assert (decoded.shape, decoded.dtype) == ((3, 32, 32), np.float32)
    assert 0 <= decoded.min() <= decoded.max() <= 1
    assert all(isinstance(v, str) for v in codec.describe().values())
    assert codec.describe()["licence"] == "Apache-2.0"


def test_codes_do_not_depend_on_the_batch_size(tiny_path: Path, depth: np.ndarray) -> None:
    one_by_one = VQVAECodec(tiny_path, batch_size=1).encode(depth)
    np.testing.assert_array_equal(VQVAECodec(tiny_path, batch_size=3).encode(depth), one_by_one)


def test_empty_batches_pass_through(tiny_path: Path) -> None:
    codec = VQVAECodec(tiny_path)
    assert codec.encode(np.zeros((0, 8, 8), np.uint8)).shape == (0, 16)
    assert codec.decode(np.zeros((0, 16), np.int64)).shape == (0, 32, 32)


def test_wrong_input_is_explained(tiny_path: Path) -> None:
    codec = VQVAECodec(tiny_path)
    with pytest.raises(UserError, match="must be uint8"):
        codec.encode(np.zeros((1, 8, 8), np.float32))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="16 codes per image"):
        codec.decode(np.zeros((1, 100), np.int64))
    with pytest.raises(UserError, match=r"0\.\.15"):
        codec.decode(np.full((1, 16), 16))


def test_nearest_code_equals_brute_force() -> None:
    rng = np.random.default_rng(1)
    vectors, codebook = rng.normal(size=(50, 8)), rng.normal(size=(16, 8))
    brute = ((vectors[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
    found = nearest_code(torch.tensor(vectors).float(), torch.tensor(codebook).float())
    np.testing.assert_array_equal(found.numpy(), brute)


def test_residual_levels_code_what_is_left_over() -> None:
    geometry = Geometry(32, 4, codebook_size=16, code_dim=8, hidden_dim=4, num_code_levels=3)
    model = tiny_checkpoint(geometry).model
    features = torch.randn(2, 8, 4, 4)
    codes = model.quantize(features)
    rest = features.permute(0, 2, 3, 1)
    for level, book in enumerate(model.codebook):
        brute = (rest[..., None, :] - book).square().sum(-1).argmin(-1)
        assert torch.equal(codes[:, level], brute)
        rest = rest - book[brute]
    assert torch.allclose(
        model.embed(codes), (features.permute(0, 2, 3, 1) - rest).permute(0, 3, 1, 2), atol=1e-5
    )
    assert geometry.num_tokens == 48


@pytest.mark.parametrize("grid", [3, 32, 64])
def test_impossible_geometries_are_refused(grid: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Geometry(image_size=32, grid_size=grid)


# Checkpoints.


def test_our_checkpoint_round_trips_with_its_recipe(tmp_path: Path) -> None:
    original = tiny_checkpoint(recipe=REFERENCE)
    checkpoint_io.save_ours(tmp_path / checkpoint_io.MODEL_FILE, original)
    loaded = checkpoint_io.load(tmp_path)  # the folder stands for the model in it
    assert (loaded.recipe, loaded.licence, loaded.training) == (
        REFERENCE,
        "Apache-2.0",
        {"step": 7},
    )
    for name, value in original.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert not list(tmp_path.glob("*.tmp"))


def test_conversion_to_the_released_layout_and_back_keeps_codes(tmp_path: Path) -> None:
    geometry = Geometry(hidden_dim=2, code_dim=8, codebook_size=16, num_res_blocks=1)
    original = tiny_checkpoint(geometry)
    checkpoint_io.save_released(tmp_path / "vae.pt", original)
    loaded = checkpoint_io.load(tmp_path / "vae.pt")
    assert loaded.model.geometry == geometry
    depth = np.random.default_rng(0).integers(0, 256, (2, 320, 320), dtype=np.uint8)
    checkpoint_io.save_ours(tmp_path / "ours.safetensors", original)
    codes = [VQVAECodec(tmp_path / name).encode(depth) for name in ("vae.pt", "ours.safetensors")]
    np.testing.assert_array_equal(*codes)
    raw = torch.load(tmp_path / "vae.pt", weights_only=True)["weights"]
    assert all(k.startswith("module.") for k in raw), "the reference cuts seven characters off"
    assert raw["module._vq_vae._embedding"].shape == (16, 8)


def test_residual_codes_do_not_fit_the_released_layout(tmp_path: Path) -> None:
    geometry = Geometry(32, 4, 16, 8, 4, 1, num_code_levels=2)
    with pytest.raises(UserError, match="holds one codebook"):
        checkpoint_io.save_released(tmp_path / "vae.pt", tiny_checkpoint(geometry))


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("true",))


def test_a_pickle_with_code_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"weights": Trap()}, protocol=2))
    with pytest.raises(UserError, match="pickle can run code"):
        checkpoint_io.load(tmp_path / "bad.pt")


def test_files_that_are_no_vqvae_say_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no VQ-VAE checkpoint at"):
        checkpoint_io.load(tmp_path / "missing.pt")
    (tmp_path / "noise.bin").write_bytes(b"not a checkpoint at all")
    with pytest.raises(UserError, match="neither a safetensors file nor"):
        checkpoint_io.load(tmp_path / "noise.bin")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a VQ-VAE of this package"):
        checkpoint_io.load(tmp_path / "other.safetensors")
    torch.save({"state": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="key 'weights'"):
        checkpoint_io.load(tmp_path / "other.pt")
