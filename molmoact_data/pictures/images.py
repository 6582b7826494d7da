"""RGB arrays to stored bytes and back. The only place where OpenCV's BGR order is swapped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def encode_jpeg(rgb_HWC: NDArray[np.uint8], quality: int) -> bytes:
    """RGB uint8 [H,W,3] -> JPEG bytes, the same for the same input; `quality` 1..100."""
    import cv2

    bgr = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV could not encode an image of shape {rgb_HWC.shape}")
    return encoded.tobytes()


def encode_png(rgb_HWC: NDArray[np.uint8]) -> bytes:
    """RGB uint8 [H,W,3] -> PNG bytes; decodes to exactly the same pixels."""
    import cv2

    done, encoded = cv2.imencode(".png", cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"OpenCV could not encode an image of shape {rgb_HWC.shape}")
    return encoded.tobytes()


def decode_image(encoded: bytes) -> NDArray[np.uint8]:
    """JPEG or PNG bytes -> RGB uint8 [H,W,3]. Raises `ValueError` where they are not an image."""
    import cv2

    bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"{len(encoded)} bytes that are not a readable image")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
