"""TFRecord files and `tf.train.Example` messages, read without TensorFlow.

A record is: length (uint64), masked CRC32C of the length, payload, masked CRC32C of the payload; all
little-endian. The whole file may be gzip. An Example is a map from name to a list of bytes, of floats
or of integers; the wire format is read directly because that is forty lines and protobuf generated
code would have to be vendored.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import crc32c
import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
LARGEST_RECORD = 2**31
"""Bytes; protobuf has no larger messages."""
_VARINT_BYTES = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

FeatureValue = list[bytes] | NDArray[np.float32] | NDArray[np.int64]


class DamagedRecordError(ValueError):
    """A record is cut off or its checksum does not match; the message says where."""


@dataclass(frozen=True)
class RecordSpan:
    """Where a record is in an uncompressed file."""

    offset: int
    """Of its header."""
    length: int
    """Of its payload."""


def masked_crc32c(data: bytes | memoryview) -> int:
    """CRC32C as TFRecord stores it: rotated right by 15 and shifted by a constant."""
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_record(file: BinaryIO, where: str) -> bytes | None:
    """The next payload, checked; None at the end. Raises `DamagedRecordError`."""
    length = _read_length(file, where)
    if length is None:
        return None
    if length > LARGEST_RECORD:
        raise DamagedRecordError(f"{where}: says it has {length} bytes, no Example has")
    body = file.read(length + _FOOTER.size)
    if len(body) < length + _FOOTER.size:
        raise DamagedRecordError(f"{where}: cut off, {len(body)} of {length + 4} bytes are left")
    payload = body[:length]
    if _FOOTER.unpack(body[length:])[0] != masked_crc32c(payload):
        raise DamagedRecordError(f"{where}: checksum of {length} bytes does not match")
    return payload


def scan_records(path: Path) -> tuple[list[RecordSpan], str | None]:
    """Spans of all whole records of an uncompressed file, without reading payloads.

    The second value says what ends the scan before the file does; later records cannot be found.
    """
    spans: list[RecordSpan] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        while True:
            try:
                length = _read_length(file, f"{path.name}, record {len(spans)}")
            except DamagedRecordError as error:
                return spans, str(error)
            if length is None:
                return spans, None
            span = RecordSpan(file.tell() - _HEADER.size, length)
            if file.tell() + length + _FOOTER.size > size:
                return spans, f"{path.name}, record {len(spans)}: cut off at {size} bytes"
            file.seek(length + _FOOTER.size, 1)
            spans.append(span)


def open_records(path: Path) -> BinaryIO:
    """The file, decompressed where it is gzip."""
    return gzip.open(path, "rb") if is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def is_gzip(path: Path) -> bool:
    """True for gzip; a plain file may start with the same two bytes, so its first checksum decides."""
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
    if not start.startswith(b"\x1f\x8b"):
        return False
    return len(start) < _HEADER.size or not _header_is_valid(start)


def _read_length(file: BinaryIO, where: str) -> int | None:
    try:
        header = file.read(_HEADER.size)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DamagedRecordError(f"{where}: {error}") from error
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise DamagedRecordError(f"{where}: cut off inside its header")
    if not _header_is_valid(header):
        raise DamagedRecordError(f"{where}: checksum of its length does not match")
    return int(_HEADER.unpack(header)[0])


def _header_is_valid(header: bytes) -> bool:
    return _HEADER.unpack(header)[1] == masked_crc32c(header[:8])


def parse_example(payload: bytes, wanted: Collection[str]) -> dict[str, FeatureValue]:
    """The wanted features of one Example. Names that it lacks are left out; the rest is skipped.

    Raises `DamagedRecordError` where the bytes are not an Example.
    """
    view = memoryview(payload)
    found: dict[str, FeatureValue] = {}
    try:
        for features in _fields(view, 1):
            for entry in _fields(features, 1):
                name = bytes(next(_fields(entry, 1))).decode()
                if name in wanted:
                    found[name] = _feature(next(_fields(entry, 2), memoryview(b"")))
    except (IndexError, StopIteration, struct.error, ValueError) as error:
        raise DamagedRecordError(f"not a tf.train.Example: {error!r}") from error
    return found


def _feature(view: memoryview) -> FeatureValue:
    """The oneof of bytes_list = 1, float_list = 2, int64_list = 3."""
    for kind, content in _tagged(view):
        if kind == 1:
            return [bytes(item) for item in _fields(content, 1)]
        if kind == 2:
            chunks = [np.frombuffer(item, "<f4") for item in _fields(content, 1)]
            return np.concatenate([np.empty(0, np.float32), *chunks])
        if kind == 3:
            ints = [decode_varints(np.frombuffer(item, np.uint8)) for item in _fields(content, 1)]
            return np.concatenate([np.empty(0, np.int64), *ints])
    return []


def decode_varints(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Packed varints [bytes] -> int64 [numbers]; negative numbers take ten bytes each."""
    last = data < 0x80
    if last.all():
        return data.astype(np.int64)
    number = np.concatenate([[0], np.cumsum(last)[:-1]])
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    position = np.arange(len(data)) - starts[number]
    if position.max() >= _VARINT_BYTES or not last[-1]:
        raise IndexError("a number has no end")
    parts = (data & 0x7F).astype(np.uint64) << (7 * position).astype(np.uint64)
    return np.bitwise_or.reduceat(parts, starts).view(np.int64)


def _fields(view: memoryview, number: int) -> Iterator[memoryview]:
    """Contents of the fields with this number."""
    return (content for found, content in _tagged(view) if found == number)


def _tagged(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) in order; unpacked scalars come as their bytes."""
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        start, wire = at, tag & 7
        if wire == _BYTES:
            length, start = _varint(view, at)
            at = start + length
        elif wire == _VARINT:
            _, at = _varint(view, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise IndexError(f"wire type {wire}")
        if at > len(view):
            raise IndexError("a field is longer than its message")
        yield tag >> 3, view[start:at]


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 7 * _VARINT_BYTES:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise IndexError("a number has no end")
