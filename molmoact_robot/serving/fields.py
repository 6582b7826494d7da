"""What robots call things: the observation keys of the common clients -> an `Observation`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import unknown_name
from molmoact_data.pictures.images import decode_image
from molmoact_data.policies import Observation, PolicyInfo
from molmoact_data.sources.images import NotEightBitError, check_eight_bit
from molmoact_robot.serving.protocol import IMAGE_LIST, Refused

MAX_PIXELS = 4096 * 4096
"""Of one compressed picture; larger ones are refused before they are decoded."""
ENCODED = (b"\xff\xd8", b"\x89PNG")
"""How a JPEG and a PNG begin: bytes that begin so may stand where a picture stands."""


@dataclass(frozen=True)
class Fields:
    """The keys of one family of clients."""

    name: str
    images: tuple[str, ...]
    """External camera first. `a/b` may also be `{"a": {"b": ...}}`."""
    state: tuple[str, ...] = ()
    """One-dimensional pieces, put together in this order."""
    prompt: str = "prompt"
    layout: Literal["HWC", "CHW"] = "HWC"


KNOWN: tuple[Fields, ...] = (
    Fields("libero", ("observation/image", "observation/wrist_image"), ("observation/state",)),
    Fields(
        "droid",
        ("observation/exterior_image_1_left", "observation/wrist_image_left"),
        ("observation/joint_position", "observation/gripper_position"),
    ),
    Fields(
        "aloha",
        ("images/cam_high", "images/cam_left_wrist", "images/cam_right_wrist"),
        ("state",),
        layout="CHW",
    ),
    Fields("molmoact2_droid", ("external_cam", "wrist_cam"), ("state",), "instruction"),
    Fields("molmoact2_yam", ("top_cam", "left_cam", "right_cam"), ("state",), "instruction"),
)
OF_THE_REQUEST = ("trace", "step", "episode", "deadline_s", "unnorm_key")
"""Ours, all optional: steer by points on 0..255; the robot's step and episode; how long the answer is of use."""
IGNORED = (
    "timestamp", "num_steps", "enable_cuda_graph", "normalization_tag", "actions",
    "observation/cartesian_position",
)  # fmt: skip
"""What known clients send and no model here reads."""


@dataclass(frozen=True)
class Request:
    """One question, checked."""

    observation: Observation
    trace: list[list[int]] | None = None
    deadline_s: float | None = None


def parse(message: Mapping[str, Any], families: Sequence[Fields], info: PolicyInfo) -> Request:
    """A message of any of the families -> what the model is asked. Raises `Refused` by name."""
    flat = _flat(message)
    family = _family(flat, families)
    _refuse_unknown(flat, family)
    key = flat.get("unnorm_key")
    if key is not None and key != info.statistics_key:
        raise Refused(
            "unknown_key", f"actions are in the statistics {info.statistics_key!r}, not {key!r}"
        )
    present = [name for name in family.images if name in flat][: max(info.num_cameras, 1)]
    observation = Observation(
        images={name: picture(name, flat[name], family.layout) for name in present},
        instruction=_prompt(flat, family),
        state=_state(flat, family, info),
        episode=str(flat.get("episode", "")),
        step=_whole(flat.get("step", 0), "step"),
    )
    return Request(observation, _trace(flat.get("trace")), _seconds(flat.get("deadline_s")))


def describe(families: Sequence[Fields]) -> dict[str, Any]:
    """What a handshake says about accepted keys."""
    return {f.name: {k: v for k, v in asdict(f).items() if k != "name"} for f in families}


def picture(name: str, value: Any, layout: str) -> NDArray[np.uint8]:
    """An array or JPEG/PNG bytes -> RGB uint8 [H, W, 3]."""
    if isinstance(value, bytes):
        return _decoded(name, value)
    if isinstance(value, list):
        raise Refused("wrong_image", f"{name} is a list; send an array or JPEG bytes")
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3:
        shown = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value)
        raise Refused("wrong_image", f"{name} must be uint8 with three axes, got {shown}")
    rgb = value.transpose(1, 2, 0) if layout == "CHW" else value
    if rgb.shape[2] != 3 or not rgb.size:
        raise Refused("wrong_image", f"{name} must be {layout} with 3 channels, got {value.shape}")
    return np.ascontiguousarray(rgb)


def _decoded(name: str, encoded: bytes) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    if not encoded.startswith(ENCODED):
        raise Refused("wrong_image", f"{name} is bytes, but neither JPEG nor PNG")
    try:
        with Image.open(io.BytesIO(encoded)) as header:
            width, height = header.size
            check_eight_bit(header)
        if width * height > MAX_PIXELS:
            raise Refused("too_large", f"{name} has {width} x {height} pixels")
        return decode_image(encoded)
    except (
        NotEightBitError,
        ValueError,
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise Refused("wrong_image", f"{name} cannot be decoded: {error}") from error


def _flat(message: Mapping[str, Any]) -> dict[str, Any]:
    """One level of maps joined by `/`; a list of pictures becomes `images/0`, `images/1`, ..."""
    flat: dict[str, Any] = {}
    for key, value in message.items():
        if not isinstance(key, str):
            raise Refused("unknown_key", f"keys are texts, got {key!r}")
        if isinstance(value, Mapping):
            flat |= {f"{key}/{inner}": item for inner, item in value.items()}
        elif key == IMAGE_LIST and isinstance(value, list):
            flat |= {f"{key}/{number}": item for number, item in enumerate(value)}
        else:
            flat[key] = value
    return flat


def _family(flat: Mapping[str, Any], families: Sequence[Fields]) -> Fields:
    if f"{IMAGE_LIST}/0" in flat:
        names = tuple(n for n in flat if n.startswith(f"{IMAGE_LIST}/"))
        prompt = "instruction" if "instruction" in flat else "prompt"
        return Fields("list", names, ("state",), prompt)
    for family in families:
        if family.images[0] in flat:
            return family
    known = ", ".join(family.images[0] for family in families)
    raise Refused("no_image", f"no first camera under any known name ({known}, {IMAGE_LIST})")


def _refuse_unknown(flat: Mapping[str, Any], family: Fields) -> None:
    known = {*family.images, *family.state, family.prompt, *OF_THE_REQUEST, *IGNORED}
    for key in flat:
        if key not in known:
            raise Refused("unknown_key", str(unknown_name("observation key", key, known)))


def _prompt(flat: Mapping[str, Any], family: Fields) -> str:
    value = flat.get(family.prompt)
    if not isinstance(value, str) or not value.strip():
        raise Refused("no_instruction", f"{family.prompt} must say what to do")
    return value


def _state(flat: Mapping[str, Any], family: Fields, info: PolicyInfo) -> NDArray[np.float32] | None:
    """The pieces in order; None where the robot sends none and the model reads none."""
    names = [name for name in family.state if name in flat]
    if info.state_dim is None and not names:
        return None
    try:
        pieces = [np.asarray(flat[name], dtype=np.float32).reshape(-1) for name in names]
    except (TypeError, ValueError) as error:
        raise Refused("wrong_dimension", f"the state is not numbers: {error}") from error
    state = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    if info.state_dim is not None and len(state) != info.state_dim:
        raise Refused(
            "wrong_dimension",
            f"the model reads a state of {info.state_dim} values, {'+'.join(family.state)} has {len(state)}",
        )
    if not np.isfinite(state).all():
        raise Refused("wrong_dimension", "the state holds NaN or infinity")
    return state


def _trace(value: Any) -> list[list[int]] | None:
    if value is None:
        return None
    try:
        points = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise Refused("wrong_trace", f"a trace is a list of x, y pairs: {error}") from error
    if points.ndim != 2 or points.shape[1] != 2 or not 2 <= len(points) <= 5:
        raise Refused("wrong_trace", f"a trace is 2 to 5 x, y pairs, got shape {points.shape}")
    if not (points.min() >= 0 and points.max() <= 255):
        raise Refused("wrong_trace", "a trace's points lie on 0..255")
    return np.rint(points).astype(int).tolist()


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not value > 0:
        raise Refused("wrong_request", f"deadline_s is a positive number of seconds, got {value!r}")
    return float(value)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, np.integer):
        return int(value)
    if type(value) is not int or value < 0:
        raise Refused("wrong_request", f"{name} is a whole number, got {value!r}")
    return value
