"""Arrays on the wire: openpi's msgpack form and MolmoAct2's JSON form, each with its inverse. Nothing is unpickled.

Needs numpy; msgpack is imported when a frame is packed. Only numbers travel: any other dtype is refused in both
directions, so that no frame can carry an object.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError

NUMBER_KINDS = "biuf"
"""Booleans, integers and floats; objects, records, strings and complex numbers are refused."""
JSON_ARRAY = "__numpy__"
IMAGE_LIST = "images"
"""Key of a plain list of pictures, external camera first."""
NO_ACTION = "no_action"
"""Name of the refusal that stands for a `PredictionFailed`; its message begins with the reason."""


class BadFrame(ValueError):
    """Bytes that are no frame of the protocol."""


class Refused(UserError):
    """A request that is not answered, by name: `busy`, `unknown_key`, `wrong_dimension`, `stale`, ...

    On the wire `name: message`, one line; `parse` is the inverse of `str`. A `UserError`: whoever asked can mend it.
    """

    def __init__(self, name: str, message: str) -> None:
        self.name, self.message = name, " ".join(message.split())
        super().__init__(f"{self.name}: {self.message}")

    @classmethod
    def parse(cls, line: str) -> Refused:
        name, _, message = line.partition(": ")
        return cls(name, message) if message else cls("error", line)


# --- openpi: msgpack ------------------------------------------------------------------------------


def pack(message: Mapping[str, Any]) -> bytes:
    """A map of arrays, numbers, texts and maps -> one frame."""
    import msgpack

    return msgpack.packb(message, default=_to_msgpack)


def unpack(frame: bytes) -> dict[str, Any]:
    """One frame -> the map; arrays are read-only views of it. Raises `BadFrame`."""
    import msgpack

    try:
        message = msgpack.unpackb(frame, object_hook=_from_msgpack)
    except BadFrame:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadFrame(f"{len(frame)} bytes that are not msgpack: {error}") from error
    if not isinstance(message, dict):
        raise BadFrame(f"a frame is a map, got a {type(message).__name__}")
    return message


def _to_msgpack(value: Any) -> Any:
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": _number(value.dtype).str}
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": _number(value.dtype).str,
            b"shape": value.shape,
        }
    raise TypeError(f"a {type(value).__name__} does not travel")


def _from_msgpack(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return array_from(value.get(b"data"), value.get(b"dtype"), value.get(b"shape"))
    if b"__npgeneric__" in value:
        dtype = _number(value.get(b"dtype"))
        try:
            return dtype.type(value.get(b"data"))
        except (TypeError, ValueError, OverflowError) as error:
            raise BadFrame(f"a number that is none: {error}") from error
    return value


# --- MolmoAct2: JSON ------------------------------------------------------------------------------


def to_json(message: Mapping[str, Any]) -> bytes:
    """A map of arrays, finite numbers, texts and maps -> a JSON body."""
    return json.dumps(message, default=_to_json_array, allow_nan=False).encode()


def from_json(body: bytes) -> dict[str, Any]:
    """A JSON body -> the map. Raises `BadFrame`."""
    try:
        message = json.loads(body, object_hook=_from_json_array)
    except BadFrame:
        raise
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"the body is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise BadFrame(f"the body is a JSON object, got a {type(message).__name__}")
    return message


def _to_json_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} does not travel")
    data = base64.b64encode(value.tobytes()).decode()
    return {JSON_ARRAY: data, "dtype": _number(value.dtype).str, "shape": list(value.shape)}


def _from_json_array(value: dict[str, Any]) -> Any:
    if JSON_ARRAY not in value:
        return value
    try:
        data = base64.b64decode(value[JSON_ARRAY], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadFrame(f"{JSON_ARRAY} is not base64: {error}") from error
    return array_from(data, value.get("dtype"), value.get("shape"))


# --- both -----------------------------------------------------------------------------------------


def array_from(data: Any, dtype: Any, shape: Any) -> NDArray[Any]:
    """A read-only array over bytes; every size is checked before it is trusted."""
    kind = _number(dtype)
    if not isinstance(shape, list | tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadFrame(f"an array's shape is a list of sizes, got {shape!r:.60}")
    if not isinstance(data, bytes) or math.prod(shape) * kind.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else "no"
        raise BadFrame(f"an array {list(shape)} of {kind} does not have {size} bytes")
    return np.frombuffer(data, dtype=kind).reshape(shape)


def _number(spelled: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(spelled) if isinstance(spelled, str | np.dtype) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in NUMBER_KINDS:
        raise BadFrame(f"arrays hold numbers, not {spelled!r:.40}")
    return dtype
