"""Roles are what the user says; a guess is only made from names and always comes with a note."""

from __future__ import annotations

import pytest

from molmoact_data.errors import UserError
from molmoact_data.sources.base import CameraFeature, SourceInfo
from molmoact_data.sources.cameras import looks_like_wrist, resolve_cameras


def info(*keys: str, depth: tuple[str, ...] = (), missing: tuple[str, ...] = ()) -> SourceInfo:
    cameras = [CameraFeature(k, 48, 64, "video") for k in keys]
    cameras += [CameraFeature(k, 48, 64, "image", is_depth=True) for k in depth]
    return SourceInfo(
        "lab/cups",
        "0" * 40,
        "lerobot-v3.0",
        10,
        tuple(cameras),
        7,
        None,
        None,
        missing_cameras=missing,
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["observation.images.top", "observation.images.side"], {"primary": "observation.images.top"}),
        (["observation.images.wrist", "observation.images.top"],
         {"primary": "observation.images.top", "wrist": "observation.images.wrist"}),
        (["eye_in_hand", "agentview"], {"primary": "agentview", "wrist": "eye_in_hand"}),
        (["left_wrist", "right_wrist", "head"], {"primary": "head", "wrist": "left_wrist"}),
        (["wrist"], {"primary": "wrist"}),
    ],
)  # fmt: skip
def test_a_guess_goes_by_names_and_is_never_silent(
    keys: list[str], expected: dict[str, str]
) -> None:
    mapping, note = resolve_cameras(info(*keys, depth=("head.depth",)), {})
    assert mapping == expected
    assert note is not None
    for role, key in expected.items():
        assert f"--camera {role}={key}" in note
    for key in set(keys) - set(expected.values()):
        assert key in note.partition("not used: ")[2]
    assert "head.depth" not in note


def test_explicit_roles_are_taken_as_they_are_and_without_a_note() -> None:
    wanted = {"wrist": "b", "primary": "a"}
    assert resolve_cameras(info("a", "b", "c"), wanted) == (wanted, None)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"primary": "observation.images.frnt"}, "Did you mean 'observation.images.front'"),
        ({"primary": "observation.depth"}, "recorded depth, not colour"),
        ({"primary": "observation.images.gone"}, "not one of the image or video files exists"),
        ({"Primary cam": "observation.images.front"}, "lower-case"),
        ({"a": "observation.images.front", "b": "observation.images.front"}, "two roles: a and b"),
    ],
)
def test_a_wrong_request_names_what_is_wrong(requested: dict[str, str], message: str) -> None:
    source = info(
        "observation.images.front",
        depth=("observation.depth",),
        missing=("observation.images.gone",),
    )
    with pytest.raises(UserError, match=message):
        resolve_cameras(source, requested)


def test_no_readable_camera_is_an_error_before_any_work() -> None:
    with pytest.raises(UserError, match="no image feature at all"):
        resolve_cameras(info(), {})
    with pytest.raises(UserError, match="only recorded depth: d"):
        resolve_cameras(info(depth=("d",)), {})
    with pytest.raises(UserError, match="declares 'v', but not one"):
        resolve_cameras(info(missing=("v",)), {})


def test_names_of_wrist_cameras() -> None:
    for key in ("observation.images.wrist", "hand_image", "robot0_eye_in_hand", "gripper_cam"):
        assert looks_like_wrist(key), key
    for key in (
        "observation.images.front",
        "agentview",
        "third_person",
        "exterior_image_1_left",
        "eye_to_hand",
    ):
        assert not looks_like_wrist(key), key
