"""A picture of more than 8 bits is refused by everyone who opens a user's picture, never clipped to white."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.sources.images import NotEightBitError, as_rgb, image_batch
from molmoact_data.web.examples import Picture
from molmoact_data.web.pictures import FetchConfig, PictureFetcher, PictureRejected, check_picture
from molmoact_data.web.reading import draw_letters, read_picture
from molmoact_robot.portal.conversation import Table
from molmoact_robot.serving.fields import Refused, picture as sent_picture
from molmoact_train.data.rendering import decode_image
from molmoact_train.families.molmoact.answers import read_images
from molmoact_train.families.molmoact.pictures import to_rgb

LEVELS = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
LETTERED = Picture(file="deep.png", labels=(("A", (1.0, 1.0, 5.0, 5.0)),))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


DEEP, EQUAL = Image.fromarray(LEVELS), Image.fromarray((LEVELS // 257).astype(np.uint8))
DEEP_PNG, EQUAL_PNG = encoded(DEEP), encoded(EQUAL)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def read_lettered(content: bytes, folder: Path) -> bytes:
    (folder / "deep.png").write_bytes(content)
    return read_picture(folder, LETTERED, PictureFetcher(folder / "kept", FetchConfig()))


def predicted(content: bytes, folder: Path) -> np.ndarray:
    (folder / "deep.png").write_bytes(content)
    return np.asarray(read_images([folder / "deep.png"])[0])


OPENERS = {
    "the rule": (lambda data, _: as_rgb(opened(data)), NotEightBitError),
    "preprocess": (lambda data, _: image_batch([data], key="front").rgb_NHWC[0], EpisodeRejected),
    "web": (lambda data, _: check_picture(data, 1000), PictureRejected),
    "letters": (lambda data, _: draw_letters(data, LETTERED), UserError),
    "web with letters": (read_lettered, PictureRejected),
    "train": (lambda data, _: decode_image(data, "row 3"), UserError),
    "predict": (predicted, UserError),
    "processor": (lambda data, _: to_rgb(opened(data)), UserError),
    "serve": (lambda data, _: sent_picture("front", data, "HWC"), Refused),
    "portal": (lambda data, _: Table().with_upload(opened(data), 2), UserError),
}


@pytest.mark.parametrize("who", OPENERS)
def test_sixteen_bits_are_refused_with_their_mode(who: str, tmp_path: Path) -> None:
    opener, error = OPENERS[who]
    with pytest.raises(error, match="mode 'I;16', not 8-bit colour"):
        opener(DEEP_PNG, tmp_path)


@pytest.mark.parametrize("who", OPENERS)
def test_the_same_picture_in_eight_bits_is_read(who: str, tmp_path: Path) -> None:
    opener, _ = OPENERS[who]
    found = opener(EQUAL_PNG, tmp_path)
    if who in ("the rule", "preprocess", "train", "predict", "processor", "serve"):
        np.testing.assert_array_equal(np.asarray(found), np.dstack([np.asarray(EQUAL)] * 3))


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "LAB"])
def test_every_mode_that_would_be_clipped_is_refused(mode: str) -> None:
    with pytest.raises(NotEightBitError, match=f"a picture of mode '{mode}'"):
        as_rgb(Image.new(mode, (4, 4)))


def test_a_web_picture_has_a_reason_of_its_own() -> None:
    with pytest.raises(PictureRejected) as caught:
        check_picture(DEEP_PNG, 1000)
    assert caught.value.reason == "not_eight_bit"
