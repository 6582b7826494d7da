"""What a TFDS `features.json` declares, flattened to the names that Examples use.

TFDS stores a dataset of steps column by column: the feature `action` of the nested `steps` is one list
`steps/action` with the values of all steps behind each other.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.sources.rlds.tfrecord import FeatureValue

STEPS = "steps/"
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "string",
)  # fmt: skip
LARGEST_SIZE = 2**31 - 1


@dataclass(frozen=True)
class RldsFeature:
    """One leaf of the feature tree."""

    name: str
    """As in the Example; step features without their `steps/`."""
    per_step: bool
    kind: Literal["tensor", "image", "text"]
    dtype: str
    shape: tuple[int | None, ...]
    encoding: str = "none"
    """`none`, `bytes` or `zlib`: how a tensor is packed."""
    nested: bool = False
    """True inside a sequence within the step, whose length is not the number of steps."""

    @property
    def key(self) -> str:
        """The name in the Example."""
        return (STEPS if self.per_step else "") + self.name

    @property
    def is_numeric(self) -> bool:
        """True for numbers of a fixed shape per step."""
        fixed = None not in self.shape and not self.nested
        return self.kind == "tensor" and self.dtype != "string" and fixed

    @property
    def is_codes(self) -> bool:
        """True for whole numbers that may be the characters of a text."""
        return self.is_numeric and np.dtype(self.dtype).kind in "iu" and len(self.shape) == 1

    def values(self, raw: FeatureValue, num_steps: int) -> NDArray[Any]:
        """Numbers as [num_steps, *shape]. Raises `ValueError` where the count does not fit."""
        if isinstance(raw, list):
            raw = np.frombuffer(b"".join(map(self._unpacked, raw)), self.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            return raw.astype(self.dtype).reshape(num_steps, *self.shape)  # type: ignore[arg-type]

    def count(self, raw: FeatureValue) -> int | None:
        """Steps that these values are, where every step has as many; None where that cannot be told.

        Raises `ValueError` for half a step.
        """
        if self.kind != "tensor" or isinstance(raw, list):
            return len(raw) if self.kind == "image" or isinstance(raw, list) else None
        size = math.prod(n or 0 for n in self.shape)
        if not size:
            return None
        if len(raw) % size:
            raise ValueError(f"{len(raw)} numbers are not {size} in every step")
        return len(raw) // size

    def texts(self, raw: FeatureValue, num_steps: int) -> list[str | None]:
        """A text per step, or the one for all; None for what is none. Numbers are read as UTF-8, zeros end them."""
        if isinstance(raw, list) and self.dtype == "string":
            return [_decoded(item) for item in raw]
        count = num_steps if self.per_step else 1
        rows = self.values(raw, count).reshape(count, -1)
        return [_decoded(_bytes_of(row)) for row in rows]

    def _unpacked(self, item: bytes) -> bytes:
        if self.encoding != "zlib":
            return item
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(item, LARGEST_SIZE)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if not unpacker.eof:
            raise ValueError("a packed tensor is cut off, or too large")
        return content


def _decoded(item: bytes) -> str | None:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _bytes_of(codes: NDArray[np.integer]) -> bytes:
    """UTF-8 bytes stored as numbers, up to the zeros that fill the row; nothing where they are no bytes."""
    text = codes[: len(codes) - int((np.cumsum(codes[::-1] != 0) == 0).sum())]
    is_bytes = bool(((text > 0) & (text < 256)).all())
    return bytes(text.astype(np.uint8)) if is_bytes else b""


@dataclass(frozen=True)
class _Shape:
    dimensions: tuple[int | str, ...] = ()
    """TFDS writes numbers as text; -1 or None for a length that varies."""


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: _Shape = _Shape()
    encoding: str = "none"


@dataclass(frozen=True)
class _Image:
    dtype: str = "uint8"
    shape: _Shape = _Shape()


@dataclass(frozen=True)
class _Dict:
    features: dict[str, _Node]


@dataclass(frozen=True)
class _Sequence:
    feature: _Node


@dataclass(frozen=True)
class _Node:
    """One node of the feature tree; at most one of its fields is there."""

    featuresDict: _Dict | None = None
    sequence: _Sequence | None = None
    text: dict[str, Any] | None = None
    image: _Image | None = None
    tensor: _Tensor | None = None
    classLabel: dict[str, Any] | None = None
    pythonClassName: str = ""


def read_features(content: bytes, where: str) -> dict[str, RldsFeature]:
    """Leaves of a `features.json` by name, in declared order. Raises `UserError`."""
    from molmoact_data.files.typed import parse_json

    tree = parse_json(_Node, content, where)
    try:
        return {f.name: f for f in _leaves(tree, "", per_step=False, nested=False)}
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _leaves(node: _Node, name: str, *, per_step: bool, nested: bool) -> Iterator[RldsFeature]:
    if node.featuresDict is not None:
        for key, child in node.featuresDict.features.items():
            inner = f"{name}/{key}" if name else key
            yield from _leaves(child, inner, per_step=per_step, nested=nested)
    elif node.sequence is not None:
        steps = name == STEPS.rstrip("/")
        inner = "" if steps else name
        child = node.sequence.feature
        yield from _leaves(child, inner, per_step=per_step or steps, nested=nested or not steps)
    elif (leaf := _leaf(node, name)) is not None:
        kind, dtype, shape, encoding = leaf
        yield RldsFeature(name, per_step, kind, dtype, shape, encoding, nested)  # type: ignore[arg-type]


def _leaf(node: _Node, name: str) -> tuple[str, str, tuple[int | None, ...], str] | None:
    """(kind, dtype, shape, encoding); None for features nobody here can use (audio, video, complex)."""
    if node.text is not None:
        return "text", "string", (), "none"
    if node.image is not None:
        return "image", node.image.dtype, _sizes(node.image.shape, name), "none"
    if node.tensor is not None:
        tensor = node.tensor
        if tensor.dtype not in DTYPES:
            return None
        return "tensor", tensor.dtype, _sizes(tensor.shape, name), tensor.encoding
    if node.classLabel is not None or node.pythonClassName.endswith(".Scalar"):
        return "tensor", "int64", (), "none"
    return None


def _sizes(shape: _Shape, name: str) -> tuple[int | None, ...]:
    try:
        sizes = [int(n) for n in shape.dimensions]
        if any(n > LARGEST_SIZE for n in sizes):
            raise ValueError
    except ValueError:
        found = str(list(shape.dimensions))[:60]
        raise ValueError(
            f"the shape of {name!r} must be whole numbers up to {LARGEST_SIZE}, found {found}"
        ) from None
    return tuple(n if n >= 0 else None for n in sizes)
