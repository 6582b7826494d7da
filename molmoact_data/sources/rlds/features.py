"""What a TFDS `features.json` declares, flattened to the names that Examples use.

TFDS stores a dataset of steps column by column: the feature `action` of the nested `steps` is one list
`steps/action` with the values of all steps behind each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.sources.rlds.tfrecord import FeatureValue

STEPS = "steps/"


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

    def values(self, raw: FeatureValue, num_steps: int) -> NDArray[Any]:
        """Numbers as [num_steps, *shape]. Raises `ValueError` where the count does not fit."""
        if isinstance(raw, list):
            unpack = zlib.decompress if self.encoding == "zlib" else bytes
            raw = np.frombuffer(b"".join(unpack(item) for item in raw), self.dtype)
        return raw.astype(self.dtype).reshape(num_steps, *self.shape)  # type: ignore[arg-type]


def flatten_features(tree: Mapping[str, Any]) -> dict[str, RldsFeature]:
    """Leaves of `features.json` by name, in declared order."""
    return {feature.name: feature for feature in _leaves(tree, "", per_step=False, nested=False)}


def _leaves(
    node: Mapping[str, Any], name: str, *, per_step: bool, nested: bool
) -> Iterator[RldsFeature]:
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            inner = f"{name}/{key}" if name else key
            yield from _leaves(child, inner, per_step=per_step, nested=nested)
    elif "sequence" in node:
        steps = name == STEPS.rstrip("/")
        child = node["sequence"]["feature"]
        inner = "" if steps else name
        yield from _leaves(child, inner, per_step=per_step or steps, nested=nested or not steps)
    elif (leaf := _leaf(node)) is not None:
        kind, dtype, shape, encoding = leaf
        yield RldsFeature(name, per_step, kind, dtype, shape, encoding, nested)  # type: ignore[arg-type]


def _leaf(node: Mapping[str, Any]) -> tuple[str, str, tuple[int | None, ...], str] | None:
    """(kind, dtype, shape, encoding); None for features nobody here can use (audio, video)."""
    if "text" in node:
        return "text", "string", (), "none"
    if "image" in node:
        return "image", node["image"].get("dtype", "uint8"), _shape(node["image"]), "none"
    if "tensor" in node:
        tensor = node["tensor"]
        return "tensor", tensor["dtype"], _shape(tensor), tensor.get("encoding", "none")
    if "classLabel" in node or node.get("pythonClassName", "").endswith(".Scalar"):
        return "tensor", "int64", (), "none"
    return None


def _shape(node: Mapping[str, Any]) -> tuple[int | None, ...]:
    sizes = (int(n) for n in node.get("shape", {}).get("dimensions", ()))
    return tuple(n if n >= 0 else None for n in sizes)
