"""`tf.train.Example` messages and their records, written: the inverse of what `sources/rlds/tfrecord.py` reads."""

from __future__ import annotations

import struct

import numpy as np

from molmoact_data.sources.rlds.tfrecord import FeatureValue, masked_crc32c

_BYTES = 2
"""Wire type of what has a length."""


def encode_record(payload: bytes) -> bytes:
    """One framed record; the inverse of `read_record`."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        (
            length,
            struct.pack("<I", masked_crc32c(length)),
            payload,
            struct.pack("<I", masked_crc32c(payload)),
        )
    )


def encode_example(features: dict[str, FeatureValue]) -> bytes:
    """Serialise an Example; the inverse of `parse_example`."""
    entries = []
    for name, value in features.items():
        if isinstance(value, list):
            kind, items = 1, b"".join(_field(1, item) for item in value)
        elif value.dtype == np.float32:
            kind, items = 2, _field(1, value.astype("<f4").tobytes())
        else:
            kind, items = 3, _field(1, b"".join(_encode_varint(int(v)) for v in value))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, _field(kind, items))))
    return _field(1, b"".join(entries))


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(content)) + content
