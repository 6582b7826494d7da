"""Images that a dataset stores: what is passed through, what is turned, and what is no colour picture."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.images import image_batch

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_that_lies_on_its_side_is_stored_upright(kind: str) -> None:
    """Readers disagree on EXIF: `datasets` turns the image, OpenCV may not; points must fit what is read."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(Image.fromarray(PIXELS), kind, exif=exif.tobytes())
    batch = image_batch([data], key="front")
    with Image.open(io.BytesIO(data)) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    assert upright.shape == (9, 6, 3)
    np.testing.assert_array_equal(batch.rgb_NHWC[0], upright)
    assert batch.encoded is None, "the bytes would be read in two ways"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_upright_picture_keeps_its_bytes(kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    data = encode(Image.fromarray(PIXELS), kind, exif=exif.tobytes())
    assert image_batch([data], key="front").encoded == (data,)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200),
        Image.fromarray(PIXELS[..., 0].astype(np.float32)),
    ],
    ids=["16 bits", "float"],
)
def test_what_is_not_8_bits_is_rejected_instead_of_clipped_to_white(image: Image.Image) -> None:
    with pytest.raises(EpisodeRejected, match="not 8-bit colour") as caught:
        image_batch([encode(image, "TIFF")], key="front")
    assert caught.value.reason is RejectReason.IMAGE_UNDECODABLE


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_colour_of_16_bits_keeps_its_upper_8_and_not_its_bytes(kind: str, channels: int) -> None:
    """Readers disagree on them: Pillow and OpenCV give 8 bits, others hand on all 16."""
    deep = np.random.default_rng(1).integers(0, 2**16, (6, 9, channels)).astype(np.uint16)
    batch = image_batch([cv2.imencode(kind, deep)[1].tobytes()], key="front")
    np.testing.assert_array_equal(batch.rgb_NHWC[0], (deep >> 8)[..., 2::-1])
    assert batch.encoded is None, "an output holds pictures of 8 bits"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_other_8_bit_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    batch = image_batch([encode(image, "PNG")], key="front")
    np.testing.assert_array_equal(batch.rgb_NHWC[0], np.asarray(image.convert("RGB")))
    assert batch.encoded is None
