from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN, needs_golden
from made_commands import Molmoact

from molmoact_data.errors import UserError
from molmoact_data.outputs.output import Output
from molmoact_data.pictures.actions import STRIP_HEIGHT, action_strip
from molmoact_data.pictures.film import (
    PAPER_RGB,
    WORDS_HEIGHT,
    caption_of,
    codes_picture,
    contact_sheet,
    depth_picture,
    episode_tiles,
    refuse_existing,
    side_by_side,
    to_height,
    write_video,
)
from molmoact_data.pictures.overlay import TRACE_RGB, draw_trace, grid_to_pixels
from molmoact_data.text.tokens import encode_depth

MakeOutput = Callable[..., Path]


class Ramp:
    """A tokenizer whose codes are their own depth."""

    codebook_size = 128
    grid_hw = (10, 10)

    def describe(self) -> dict[str, str]:
        return {"name": "ramp"}

    def encode(self, depth_u8_NHW: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return (codes.reshape(-1, 10, 10) / 127).astype(np.float32)


@needs_golden
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_trace_overlay_equals_the_training_samples(name: str) -> None:
    golden = np.load(GOLDEN / "training_sample" / "overlay.npz")
    before = golden[f"image_{name}"].copy()
    drawn = draw_trace(before, golden["trace"])
    np.testing.assert_array_equal(drawn, golden[f"drawn_{name}"])
    np.testing.assert_array_equal(before, golden[f"image_{name}"])  # not in place


def test_trace_points_map_to_the_corner_pixels() -> None:
    pixels = grid_to_pixels([[0, 0], [255, 255], [128, 128]], height=240, width=320)
    assert pixels.tolist() == [[0, 0], [319, 239], [160, 120]]


@pytest.mark.parametrize("trace", [[], [[10, 10]]])
def test_fewer_than_two_points_draw_nothing(trace: list[list[int]]) -> None:
    rgb = np.zeros((20, 20, 3), dtype=np.uint8)
    assert not draw_trace(rgb, trace).any()


def test_near_is_brighter_than_far_and_flat_is_no_error() -> None:
    picture = depth_picture(np.array([[0.0, 0.5, 1.0]]))
    assert picture.sum(axis=2)[0].tolist() == sorted(picture.sum(axis=2)[0].tolist())
    assert depth_picture(np.zeros((2, 2))).shape == (2, 2, 3)


def test_codes_become_the_depth_that_the_tokenizer_says() -> None:
    codes = list(range(100))
    expected = depth_picture(np.arange(100).reshape(10, 10) / 127)
    np.testing.assert_array_equal(codes_picture(codes, Ramp()), expected)
    with pytest.raises(UserError, match="reads 100 codes, got 99"):
        codes_picture(codes[1:], Ramp())
    with pytest.raises(UserError, match=r"0\.\.127"):
        codes_picture([*codes[1:], 128], Ramp())


def test_contact_sheet_places_every_tile() -> None:
    tiles = [np.full((10, 20, 3), i + 100, dtype=np.uint8) for i in range(5)]
    sheet = contact_sheet(tiles, columns=2)
    assert sheet.shape == (3 * 18, 2 * 28, 3)
    assert [sheet[18 * (i // 2) + 9, 28 * (i % 2) + 14, 0] for i in range(5)] == [
        100, 101, 102, 103, 104,
    ]  # fmt: skip


def test_pictures_of_different_height_meet() -> None:
    assert to_height(np.zeros((48, 64, 3), np.uint8), 96).shape == (96, 128, 3)


def test_a_long_instruction_is_not_cut_off() -> None:
    """Its line has room on both sides; in usual letters it would be half as wide again as the picture."""
    words = "pick up the black bowl next to the ramekin and put it on the plate"
    caption = caption_of(["episode 0, frame 5", "trace 0.46"], words)
    tile = side_by_side({"primary": np.zeros((256, 400, 3), np.uint8)}, caption)
    line = tile[-WORDS_HEIGHT:]
    inked = np.flatnonzero((line != PAPER_RGB).any(axis=(0, 2)))
    assert 300 < inked[-1] < 400 - 2, "all of it"
    assert tile.shape[0] == 256 + 3 * WORDS_HEIGHT, "names above, two lines below"


def test_an_episode_is_shown_whole_or_sampled(make_output: MakeOutput) -> None:
    output = Output.open(make_output())
    everything = list(episode_tiles(output, 1, tokenizer=None))
    sampled = list(episode_tiles(output, 1, tokenizer=None, frames=3))
    assert len(everything) == 9
    assert len(sampled) == 3
    for tile, frame in zip(sampled, (0, 4, 8), strict=True):
        np.testing.assert_array_equal(tile, everything[frame])
    with_depth = next(episode_tiles(output, 1, tokenizer=Ramp()))
    assert with_depth.shape[1] == everything[0].shape[1] + 256
    with pytest.raises(UserError, match="episode 99 is not in"):
        list(episode_tiles(output, 99, tokenizer=None))


def test_a_film_reads_back_with_its_frames(tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.mp4"
    shades = [np.full((49, 64, 3), s, dtype=np.uint8) for s in (20, 120, 220)]
    assert write_video(path, iter(shades), fps=10) == 3
    with av.open(str(path)) as film:
        frames = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
    assert [f.shape for f in frames] == [(48, 64, 3)] * 3
    assert [abs(int(f.mean()) - s) < 8 for f, s in zip(frames, (20, 120, 220), strict=True)]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    assert refuse_existing(path, overwrite=False) == path
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="--overwrite"):
        refuse_existing(path, overwrite=False)
    assert refuse_existing(path, overwrite=True) == path
    with pytest.raises(UserError, match=r"\.mp4, \.png"):
        refuse_existing(tmp_path / "x.gif", overwrite=False)


def test_actions_are_drawn_as_far_as_they_are_done() -> None:
    """A rising line of the first dimension: what is done is cyan and left of the cursor, and rises."""
    actions = np.stack([np.linspace(0, 1, 50), np.zeros(50)], axis=1)
    for step in (10, 49, 50):
        strip = action_strip(actions, step, ("x", "gripper"), 400).astype(int)
        done = np.abs(strip - TRACE_RGB).sum(axis=2) < 60
        rows, columns = np.nonzero(done)
        edge = 6 + min(step, 49) / 49 * (200 - 13)
        assert abs(columns.max() - edge) <= 4, "and no further than the cursor"
        assert rows[columns.argmin()] > rows[columns.argmax()], "it rises"
    many = action_strip(np.zeros((3, 40)), 0, (), 640)
    assert many.shape == (STRIP_HEIGHT, 640, 3)


def test_viz_command(make_output: MakeOutput, tmp_path: Path, molmoact: Molmoact) -> None:
    import cv2

    out, sheet, film = str(make_output()), tmp_path / "sheet.png", tmp_path / "film.mp4"
    assert molmoact("viz", out, "--episode", 1, "--output-path", sheet)[0] == 0
    assert cv2.imread(str(sheet)) is not None
    assert molmoact("viz", out, "--episode", 1, "--output-path", film)[0] == 0
    found, frame = cv2.VideoCapture(str(film)).read()
    assert found
    height = next(episode_tiles(Output.open(out), 1, tokenizer=None)).shape[0]
    assert frame.shape[0] == height + STRIP_HEIGHT, "the actions stand below the pictures"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-path", "x.png"], "give a preprocessed output"),
        (["nowhere", "--output-path", "x.png"], "nowhere"),
        (["--tokens", encode_depth([0]), "--output-path", "x.png"], "--tokens needs --vqvae"),
        (
            ["--tokens", "1", "--vqvae", "none.pt", "--output-path", "x.png"],
            "no VQ-VAE checkpoint at",
        ),
    ],
)
def test_viz_names_what_is_missing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    molmoact: Molmoact,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, stderr = molmoact("viz", *arguments)
    assert code == 2
    assert message in stderr


class Teachers:
    """Fakes with the shape of `molmoact_data.teachers.choice.Teachers`, able to decode."""

    def __init__(self) -> None:
        from made_outputs import BrightestPixel, FakeDepth, FakeTokenizer

        class Decoding(FakeTokenizer):
            def decode(self, codes: np.ndarray) -> np.ndarray:
                return Ramp().decode(codes)

        self.depth, self.tokenizer, self.pointer = FakeDepth(), Decoding(), BrightestPixel()

    def check_source(self, info: object) -> None:
        """They fit every dataset."""


def test_preview_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    import cv2
    from made_outputs import DotSource

    import pipelines.preview

    monkeypatch.setattr(pipelines.preview, "open_source", lambda *_, **__: DotSource())
    monkeypatch.setattr(pipelines.preview, "load_teachers", lambda *_: Teachers())
    sheet = tmp_path / "sheet.png"
    command = ("preview", "--dataset-path", "dots", "--preset", "embedded", "--output-path", sheet)
    code, out, _ = molmoact(*command, "--frames", 8, "--json")
    assert code == 0
    result: dict[str, Any] = json.loads(out)
    assert result == {"output": str(sheet), "frames": 8, "found": 8, "rejected": {}}
    picture = cv2.imread(str(sheet))
    # Four rows of two tiles: two cameras and the depth at 4:3, the codes' square picture, words
    # above, two lines of them below, 8 of paper.
    assert picture.shape == (4 * (22 + 256 + 2 * 22 + 8), 2 * (3 * 341 + 256 + 8), 3)
    code, _, stderr = molmoact(*command)
    assert code == 2
    assert "--overwrite" in stderr
