"""Depth-Anything-V2 against the original's own answers (golden/depth_anything), and its error paths."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden import GOLDEN, needs_golden
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from molmoact_data.errors import UserError
from molmoact_data.labels.depth import DepthEstimator
from molmoact_data.labels.depth_scaling import scale_to_u8
from molmoact_data.teachers.depth_anything import (
    DepthAnythingV2,
    network_size,
    preprocess,
    preprocess_on_device,
)
from molmoact_data.teachers.depth_anything_weights import convert_name, infer_config
from molmoact_data.teachers.published import DEPTH_WEIGHTS, Published


def stored_cases() -> list[str]:
    """The pictures that this set of answers has."""
    with np.load(GOLDEN / "depth_anything" / "io.npz") as file:
        return sorted(name[4:] for name in file.files if name.startswith("rgb_"))


@pytest.fixture(scope="module")
def tiny() -> DepthAnythingV2:
    checkpoint = GOLDEN / "depth_anything" / "depth_anything_v2_tiny.pth"
    return DepthAnythingV2("vits", str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "depth_anything" / "io.npz") as file:
        return dict(file)


@needs_golden
@pytest.mark.parametrize(
    ("case", "scaled_by"), [*((case, "opencv") for case in stored_cases()), ("b", "torch")]
)
def test_depth_equals_the_original(
    tiny: DepthAnythingV2,
    golden: dict,
    case: str,
    scaled_by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`a` is square; `b` and `c` also need the original's position-embedding offset (5e-4 without it).

    `torch` scales the frames as an accelerator does.
    """
    monkeypatch.setattr(tiny, "scale_on_device", scaled_by == "torch")
    depth = tiny.estimate(golden[f"rgb_{case}"][None])
    expected = golden[f"depth_{case}"]
    assert depth.shape == (1, *expected.shape)
    assert depth.dtype == np.float32
    assert np.abs(depth[0] - expected).max() <= 1e-5 * expected.max()
    levels = np.abs(scale_to_u8(depth)[0].astype(int) - golden[f"depth_u8_{case}"])
    assert (levels <= 1).mean() >= 0.999


@needs_golden
def test_depth_does_not_depend_on_the_grouping(tiny: DepthAnythingV2, golden: dict) -> None:
    rgb = golden["rgb_c"]
    frames = np.stack([rgb, rgb[:, ::-1], rgb[::-1]])
    together = tiny.estimate(frames)
    alone = np.concatenate([tiny.estimate(frame[None]) for frame in frames])
    np.testing.assert_array_equal(together, alone)


@needs_golden
def test_last_batch_is_filled_up(golden: dict) -> None:
    """With batches of two, three frames are two passes of two; the filler's answer is dropped."""
    tiny = DepthAnythingV2(
        "vits", str(GOLDEN / "depth_anything" / "depth_anything_v2_tiny.pth"), device="cpu"
    )
    tiny.batch_size = 2
    frames = np.repeat(golden["rgb_c"][None], 3, axis=0)
    depth = tiny.estimate(frames)
    assert depth.shape == frames.shape[:3]
    np.testing.assert_allclose(depth[2], golden["depth_c"], rtol=0, atol=1e-3)
    assert tiny.estimate(frames[:0]).shape == (0, *frames.shape[1:3])


@needs_golden
def test_hub_folder_gives_the_same_depth(
    tiny: DepthAnythingV2, golden: dict, tmp_path: Path
) -> None:
    tiny.model.save_pretrained(tmp_path / "hub")
    from_folder = DepthAnythingV2("vits", str(tmp_path / "hub"), device="cpu")
    rgb = golden["rgb_b"][None]
    np.testing.assert_array_equal(from_folder.estimate(rgb), tiny.estimate(rgb))
    assert from_folder.describe()["revision"].startswith("sha256:")


def test_only_the_published_repositories_are_asked_for_at_their_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A commit of one repository means nothing in another."""
    asked: list[tuple[str, str]] = []

    def fake(one: Published) -> Path:
        asked.append((one.repository, one.revision))
        return tmp_path

    monkeypatch.setattr("molmoact_data.teachers.depth_anything.fetch", fake)
    base = DEPTH_WEIGHTS["vitb"]
    for encoder, source, revision in (
        ("vits", None, None),
        ("vitb", base.repository, None),
        ("vits", "lab/finer-depth", None),
        ("vits", "lab/finer-depth", "v2"),
        ("vitl", None, "main"),
    ):
        with pytest.raises(UserError, match="is no Depth-Anything-V2 checkpoint"):
            DepthAnythingV2(encoder, source, revision=revision, device="cpu")
    small, large = (DEPTH_WEIGHTS[name] for name in ("vits", "vitl"))
    assert asked == [
        (small.repository, small.revision),
        (base.repository, base.revision),
        ("lab/finer-depth", "main"),
        ("lab/finer-depth", "v2"),
        (large.repository, "main"),
    ]


@pytest.mark.parametrize(
    ("image_hw", "expected"),
    [((256, 256), (518, 518)), ((480, 640), (518, 686)), ((640, 480), (686, 518)),
     ((171, 213), (518, 644)), ((1080, 1920), (518, 924)), ((14, 14), (518, 518))],
)  # fmt: skip
def test_network_size(image_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    """Hand-computed: 518/480*640 = 690.7 = 49.3 patches -> 49*14 = 686."""
    assert network_size(*image_hw) == expected


def test_preprocess_is_rgb_and_normalised() -> None:
    rgb = np.zeros((28, 28, 3), np.uint8)
    rgb[..., 0] = 255
    pixels = preprocess(rgb)
    assert pixels.shape == (3, 518, 518)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), expected, rtol=1e-6)


@pytest.mark.parametrize("image_hw", [(256, 256), (171, 213), (480, 640), (720, 1280)])
def test_both_ways_to_scale_agree(image_hw: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    there = preprocess_on_device(torch.from_numpy(rgb[None]))[0].numpy()
    assert np.abs(there - preprocess(rgb)).max() < 1e-3  # of a range of 4.6, on pure noise
    smooth = cv2.GaussianBlur(rgb, (0, 0), 3)
    there = preprocess_on_device(torch.from_numpy(smooth[None]))[0].numpy()
    assert np.abs(there - preprocess(smooth)).max() < 1e-4


@needs_golden
def test_geometry_comes_from_the_weights() -> None:
    state = torch.load(GOLDEN / "depth_anything" / "depth_anything_v2_tiny.pth", weights_only=True)
    config = infer_config(state)
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers) == (48, 12)
    assert (backbone.num_attention_heads, backbone.image_size) == (4, 518)
    assert config.neck_hidden_sizes == [12, 24, 48, 96]
    assert (config.fusion_hidden_size, config.head_hidden_size) == (16, 32)


def test_names_of_the_fusion_stage_are_reversed() -> None:
    """The deepest feature is the original's refinenet4 and transformers' first fusion layer."""
    old = "depth_head.scratch.refinenet4.resConfUnit2.conv1.weight"
    assert convert_name(old) == "neck.fusion_stage.layers.0.residual_layer2.convolution1.weight"
    assert convert_name("depth_head.scratch.layer1_rn.weight") == "neck.convs.0.weight"


@needs_golden
def test_describe_of_unpublished_weights_claims_no_licence(tiny: DepthAnythingV2) -> None:
    assert isinstance(tiny, DepthEstimator)
    described = tiny.describe()
    assert described["licence"].startswith("unknown")
    assert described["revision"].startswith("sha256:")


def published_folder(path: Path, hidden_size: int, num_heads: int) -> Path:
    """A transformers folder of a published width, with a small head."""
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(
            image_size=518, patch_size=14, hidden_size=hidden_size, num_hidden_layers=12, mlp_ratio=1,
            num_attention_heads=num_heads, out_indices=[3, 6, 9, 12], reshape_hidden_states=False,
        ),
        reassemble_hidden_size=hidden_size, neck_hidden_sizes=[4, 4, 4, 4], fusion_hidden_size=4,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(path)
    return path


def test_licence_follows_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Base weights (width 768) are non-commercial whatever the user calls them."""
    folder = published_folder(tmp_path / "base", hidden_size=768, num_heads=12)
    base = DepthAnythingV2("vitb", str(folder), device="cpu")
    assert base.describe()["licence"] == "CC-BY-NC-4.0"
    assert "not for commercial use" in caplog.text
    with pytest.raises(UserError, match=r"those of vitb .CC-BY-NC-4.0., not of vits"):
        DepthAnythingV2("vits", str(folder), device="cpu")


def test_user_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'vitb'"):
        DepthAnythingV2("vit-b")
    with pytest.raises(UserError, match=r"Download depth_anything_v2_vit.*CC-BY-NC-4.0"):
        DepthAnythingV2("vitb", str(tmp_path / "absent.pth"))
    torch.save({"weights": {}}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:100])
    for name in ("other.pth", "cut.pth"):
        with pytest.raises(UserError, match="not a Depth-Anything-V2 checkpoint"):
            DepthAnythingV2("vitb", str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (str(tmp_path / "no-such-folder"), "nobody/nothing"):
        with pytest.raises(UserError, match=r"390 MB, licence CC-BY-NC-4.0"):
            DepthAnythingV2("vitb", source)
