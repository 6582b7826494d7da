"""RLDS without TensorFlow: real Bridge episodes, and small datasets in the shape of each preset.

The Examples here are made and checked with protobuf's own runtime from a descriptor written out below,
so that our wire parser is held against an independent one.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import SHARED_DATA
from hypothesis import given, strategies as st
from made_tfrecord import encode_example, encode_record
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import EpisodeRejected, RejectReason, UserError
from molmoact_data.sources.base import EpisodeSource
from molmoact_data.sources.cameras import resolve_cameras
from molmoact_data.sources.channels import convert
from molmoact_data.sources.opening import open_source
from molmoact_data.sources.rlds.tfrecord import (
    decode_varints,
    open_records,
    parse_example,
    read_record,
)

ROOT = Path(__file__).resolve().parent.parent
BRIDGE = SHARED_DATA / "bridge-rlds-octo" / "bridge_dataset" / "1.0.0"
needs_bridge = pytest.mark.skipif(not BRIDGE.is_dir(), reason=f"real input is not at {BRIDGE}")


@functools.cache
def example_class() -> Any:
    """`tf.train.Example` for protobuf's runtime, from tensorflow/core/example/{example,feature}.proto."""
    protobuf = pytest.importorskip(
        "google.protobuf.descriptor_pb2", reason="protobuf is not installed"
    )
    from google.protobuf import descriptor_pool, message_factory

    file = protobuf.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        added = file.message_type.add(name=name)
        for field, number, kind, label, type_name in fields:
            added.field.add(
                name=field, number=number, type=kind, label=label, type_name=type_name or None
            )
        return added

    for name, kind in (("BytesList", 12), ("FloatList", 2), ("Int64List", 3)):
        message(name, ("value", 1, kind, 3, ""))
    lists = (
        ("bytes_list", 1, "BytesList"),
        ("float_list", 2, "FloatList"),
        ("int64_list", 3, "Int64List"),
    )
    feature = message("Feature", *((n, i, 11, 1, f".t.{t}") for n, i, t in lists))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", 1, 11, 3, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".t.Feature")
    message("Example", ("features", 1, 11, 1, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def serialize(features: Mapping[str, Any]) -> bytes:
    """An Example by protobuf: lists of bytes, float arrays, integer arrays."""
    example = example_class()()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif value.dtype.kind == "f":
            feature.float_list.value.extend(value.ravel().tolist())
        else:
            feature.int64_list.value.extend(value.ravel().astype(np.int64).tolist())
    return example.SerializeToString()


def payloads(path: Path) -> list[bytes]:
    with open_records(path) as file:
        return list(iter(lambda: read_record(file, "record"), None))


@needs_bridge
def test_real_records_are_parsed_as_protobuf_parses_them() -> None:
    (path,) = BRIDGE.glob("*.tfrecord-*")
    records = payloads(path)
    assert len(records) == 25
    for payload in records[::8]:
        theirs = example_class().FromString(payload).features.feature
        ours = parse_example(payload, set(theirs))
        assert set(ours) == set(theirs)
        for name, feature in theirs.items():
            expected = getattr(feature, feature.WhichOneof("kind")).value
            assert list(ours[name]) == list(expected), name


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_integers_survive_both_parsers(numbers: list[int]) -> None:
    values = np.array(numbers, np.int64)
    payload = encode_example({"n": values, "b": [b"", b"x"], "f": np.array([1.5], np.float32)})
    ours = parse_example(payload, {"n", "b", "f"})
    np.testing.assert_array_equal(ours["n"], values)
    theirs = example_class().FromString(payload).features.feature
    assert list(theirs["n"].int64_list.value) == numbers
    assert (ours["b"], list(ours["f"])) == ([b"", b"x"], [1.5])
    assert parse_example(payload, {"b"}).keys() == {"b"}


def test_varints_by_hand() -> None:
    data = np.array([0x01, 0xAC, 0x02, 0x7F, 0x80, 0x01], np.uint8)
    np.testing.assert_array_equal(decode_varints(data), [1, 300, 127, 128])


@needs_bridge
def test_bridge_gives_its_rows_with_original_bytes_whatever_the_flags_say() -> None:
    source = open_source(BRIDGE)
    assert (source.info.format, source.info.fps, source.info.action_dim) == ("rlds", 5, 7)
    assert [ref.num_frames for ref in source.episodes] == [10] * 25
    mapping, _ = resolve_cameras(source.info, {})
    assert mapping["primary"] == "observation/image_0"
    (path,) = BRIDGE.glob("*.tfrecord-*")
    rows = 0
    for ref, payload in zip(source.episodes, payloads(path), strict=True):
        theirs = example_class().FromString(payload).features.feature
        assert list(theirs["episode_metadata/has_image_0"].int64_list.value) == [0]  # the flag lies
        columns = source.read_columns(ref)
        np.testing.assert_array_equal(
            columns.action.ravel(), np.array(theirs["steps/action"].float_list.value, np.float32)
        )
        text = theirs["steps/language_instruction"].bytes_list.value[0].decode()
        assert columns.instructions == (text,) * 10
        batches = [
            b["observation/image_0"] for b in source.iter_frames(ref, ["observation/image_0"], 4)
        ]
        encoded = [data for batch in batches for data in batch.encoded or ()]
        assert encoded == list(theirs["steps/observation/image_0"].bytes_list.value)
        pixels = np.concatenate([batch.rgb_NHWC for batch in batches])
        np.testing.assert_array_equal(pixels[3], np.asarray(Image.open(io.BytesIO(encoded[3]))))
        rows += len(pixels)
    assert rows == 250
    with pytest.raises(
        EpisodeRejected, match=r"image_missing: observation/image_3 is a placeholder"
    ):
        list(source.iter_frames(source.episodes[0], ["observation/image_3"], 4))


# Small datasets in the shape of each preset. A leaf is (dtype, shape); "image" and "text" are special.
STEPS = 6
COMMON = {"is_first": ("bool", ())}
SHAPES: dict[str, dict[str, Any]] = {
    "fractal20220817_data": {
        "action/world_vector": ("float32", (3,)), "action/rotation_delta": ("float32", (3,)),
        "action/gripper_closedness_action": ("float32", (1,)),
        "observation/base_pose_tool_reached": ("float32", (7,)), "observation/gripper_closed": ("float32", (1,)),
        "observation/natural_language_instruction": ("string", ()), "observation/image": "image",
    },
    "bc_z": {
        "action/future/xyz_residual": ("float32", (30,)), "action/future/axis_angle_residual": ("float32", (30,)),
        "action/future/target_close": ("int64", (10,)), "observation/present/xyz": ("float32", (3,)),
        "observation/present/axis_angle": ("float32", (3,)), "observation/present/sensed_close": ("float32", (1,)),
        "observation/natural_language_instruction": ("string", ()), "observation/image": "image",
    },
    "droid": {
        "action_dict/cartesian_velocity": ("float64", (6,)), "action_dict/gripper_position": ("float64", (1,)),
        "observation/cartesian_position": ("float64", (6,)), "observation/gripper_position": ("float64", (1,)),
        "observation/exterior_image_1_left": "image", "observation/exterior_image_2_left": "image",
        "observation/wrist_image_left": "image", "language_instruction": "text", "language_instruction_2": "text",
    },
    "our_lab": {
        "action": ("float32", (4,)), "observation/state": ("float32", (2,)),
        "observation/image": "image", "language_instruction": "text",
    },
}  # fmt: skip


def leaf(kind: Any) -> dict[str, Any]:
    if kind == "image":
        shape = {"dimensions": ["8", "12", "3"]}
        return {"image": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"}}
    if kind == "text":
        return {"text": {}}
    dtype, shape = kind
    return {
        "tensor": {
            "shape": {"dimensions": [str(n) for n in shape]},
            "dtype": dtype,
            "encoding": "none",
        }
    }


def tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `featuresDict` for names such as observation/image; `future/...` is one name with a slash."""
    nested: dict[str, Any] = {}
    for name, kind in leaves.items():
        group, _, rest = name.partition("/")
        if rest:
            nested.setdefault(group, {"featuresDict": {"features": {}}})["featuresDict"][
                "features"
            ][rest] = leaf(kind)
        else:
            nested[name] = leaf(kind)
    return {"featuresDict": {"features": nested}}


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def episode(leaves: Mapping[str, Any], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for name, kind in leaves.items():
        if kind == "image":
            values[f"steps/{name}"] = [jpeg(seed * 100 + t) for t in range(STEPS)]
        elif kind == "text" or kind[0] == "string":
            values[f"steps/{name}"] = [f"do task {seed}".encode()] * STEPS
        elif kind[0] in ("int64", "bool"):
            values[f"steps/{name}"] = rng.integers(0, 2, (STEPS, *kind[1]))
        else:
            values[f"steps/{name}"] = rng.normal(size=(STEPS, *kind[1])).astype(np.float32)
    return values


def write(
    root: Path,
    name: str,
    shards: list[list[bytes]],
    *,
    compress: bool = False,
    declared: list[int] | None = None,
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    steps = {"sequence": {"feature": tree(COMMON | SHAPES[name]), "length": "-1"}}
    (root / "features.json").write_text(
        json.dumps({"featuresDict": {"features": {"steps": steps}}})
    )
    lengths = declared or [len(records) for records in shards]
    split = {"name": "train", "shardLengths": [str(n) for n in lengths]}
    (root / "dataset_info.json").write_text(
        json.dumps({"name": name, "version": "1.0.0", "splits": [split]})
    )
    for number, records in enumerate(shards):
        content = b"".join(encode_record(r) for r in records)
        path = root / f"{name}-train.tfrecord-{number:05d}-of-{len(shards):05d}"
        path.write_bytes(gzip.compress(content) if compress else content)
    return root


def make(root: Path, name: str, **options: Any) -> tuple[EpisodeSource, list[dict[str, Any]]]:
    """Three episodes in two shards, and what was put in."""
    episodes = [episode(COMMON | SHAPES[name], seed) for seed in range(3)]
    records = [serialize(e) for e in episodes]
    return open_source(write(root, name, [records[:2], records[2:]], **options)), episodes


def recorded(values: dict[str, Any], name: str, stop: int | None = None) -> NDArray[np.float32]:
    return np.asarray(values[f"steps/{name}"], np.float32).reshape(STEPS, -1)[:, :stop]


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_droid_preset(tmp_path: Path, compress: bool) -> None:  # noqa: FBT001
    source, episodes = make(tmp_path, "droid", compress=compress)
    assert (source.info.fps, source.info.action_dim, source.info.state_dim) == (15, 7, 7)
    assert resolve_cameras(source.info, {})[0] == {
        "primary": "observation/exterior_image_1_left", "wrist": "observation/wrist_image_left",
    }  # fmt: skip
    for position in (2, 0, 1):  # any order, across shards
        ref, values = source.episodes[position], episodes[position]
        columns = source.read_columns(ref)
        velocity = recorded(values, "action_dict/cartesian_velocity")
        gripper = 1 - recorded(values, "action_dict/gripper_position")
        np.testing.assert_array_equal(columns.action, np.hstack([velocity, gripper]))
        assert columns.instructions == (f"do task {position}",) * STEPS
        np.testing.assert_allclose(columns.timestamp_s, np.arange(STEPS) / 15, rtol=1e-6)


def test_fractal_preset_turns_commands_into_a_state(tmp_path: Path) -> None:
    source, episodes = make(tmp_path, "fractal20220817_data")
    columns = source.read_columns(source.episodes[1])
    assert (source.info.fps, columns.action.shape, columns.state.shape) == (
        3,
        (STEPS, 7),
        (STEPS, 8),
    )
    np.testing.assert_array_equal(
        columns.action[:, :3], recorded(episodes[1], "action/world_vector")
    )
    assert set(np.unique(columns.action[:, 6])) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("closing", "is_open"),
    [
        ([0, 0, 1, 0, 0, -1, 0], [1, 1, 0, 0, 0, 1, 1]),
        ([0, -1, 0, 1], [0, 1, 1, 0]),
        ([0, 0.05, -0.05], [1, 1, 1]),
    ],
)
def test_gripper_commands_by_hand(closing: list[float], is_open: list[float]) -> None:
    column = np.array(closing, np.float32)[:, None]
    np.testing.assert_array_equal(convert(column, "closing_to_open")[:, 0], is_open)


def test_bc_z_preset_takes_the_first_of_ten_steps(tmp_path: Path) -> None:
    source, episodes = make(tmp_path, "bc_z")
    action = source.read_columns(source.episodes[2]).action
    close = recorded(episodes[2], "action/future/target_close", 1)
    parts = [recorded(episodes[2], f"action/future/{n}_residual", 3) for n in ("xyz", "axis_angle")]
    np.testing.assert_array_equal(action, np.hstack([*parts, 1 - close]))
    assert source.info.warnings == ()


def test_an_unknown_dataset_is_guessed_out_loud_or_mapped_by_its_own_file(tmp_path: Path) -> None:
    source, episodes = make(tmp_path / "a", "our_lab")
    (note,) = source.info.warnings
    assert "guessed: action=action, state=observation/state" in note
    np.testing.assert_array_equal(
        source.read_columns(source.episodes[0]).action, recorded(episodes[0], "action")
    )
    own = "datasets: [our_lab]\nfps: 20\ngripper: none\ninstruction: [language_instruction]\n"
    own += "cameras: [observation/image]\naction: [{feature: action, start: 1, stop: 3}]\n"
    (tmp_path / "a" / "molmoact_mapping.yaml").write_text(own)
    mapped = open_source(tmp_path / "a")
    assert (
        mapped.info.fps,
        mapped.info.action_dim,
        mapped.info.state_dim,
        mapped.info.warnings,
    ) == (20, 2, None, ())
    (tmp_path / "a" / "molmoact_mapping.yaml").write_text(
        own.replace("feature: action", "feature: actoin")
    )
    with pytest.raises(UserError, match="Did you mean 'action'"):
        open_source(tmp_path / "a")


def test_a_damaged_payload_rejects_its_episode_alone(tmp_path: Path) -> None:
    make(tmp_path, "our_lab")
    path = tmp_path / "our_lab-train.tfrecord-00000-of-00002"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    source = open_source(tmp_path)
    with pytest.raises(EpisodeRejected) as caught:
        source.read_columns(source.episodes[0])
    assert caught.value.reason is RejectReason.CHECKSUM_MISMATCH
    assert [len(source.read_columns(ref).action) for ref in source.episodes[1:]] == [STEPS, STEPS]


def test_a_truncated_shard_rejects_what_is_cut_off(tmp_path: Path) -> None:
    make(tmp_path, "our_lab")
    path = tmp_path / "our_lab-train.tfrecord-00000-of-00002"
    path.write_bytes(path.read_bytes()[:-100])
    source = open_source(tmp_path)
    assert any("cut off" in w for w in source.info.warnings)
    assert len(source.episodes) == 3
    with pytest.raises(EpisodeRejected) as caught:
        source.read_columns(source.episodes[1])
    assert caught.value.reason is RejectReason.ROWS_UNREADABLE
    assert len(source.read_columns(source.episodes[2]).action) == STEPS


def consume(source: EpisodeSource, position: int) -> None:
    source.read_columns(source.episodes[position])
    list(source.iter_frames(source.episodes[position], ["observation/image"], 4))


def spoil(**changes: Any) -> list[bytes]:
    values = episode(COMMON | SHAPES["our_lab"], 0)
    for name, value in changes.items():
        key = "steps/" + name.replace("__", "/")
        if value is None:
            del values[key]
        else:
            values[key] = value
    return [serialize(values), serialize(episode(COMMON | SHAPES["our_lab"], 1))]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": np.full((STEPS, 4), np.nan, np.float32)}, RejectReason.ACTION_NON_FINITE),
        ({"action": np.zeros((STEPS, 3), np.float32)}, RejectReason.ACTION_DIMENSION_DIFFERS),
        ({"action": None}, RejectReason.COLUMN_MISSING),
        (
            {"observation__state": np.full((STEPS, 2), np.inf, np.float32)},
            RejectReason.STATE_NON_FINITE,
        ),
        ({"language_instruction": [b" "] * STEPS}, RejectReason.INSTRUCTION_MISSING),
        ({"observation__image": [b""] * STEPS}, RejectReason.IMAGE_MISSING),
        ({"observation__image": [jpeg(0)] * (STEPS - 1) + [b""]}, RejectReason.IMAGE_MISSING),
        ({"observation__image": [jpeg(0)] * (STEPS - 1)}, RejectReason.LENGTHS_DISAGREE),
        ({"observation__image": [jpeg(0)] * (STEPS + 1)}, RejectReason.LENGTHS_DISAGREE),
        ({"is_first": np.zeros(STEPS - 1, np.int64)}, RejectReason.LENGTHS_DISAGREE),
        ({"action": np.zeros(4 * STEPS - 1, np.float32)}, RejectReason.ACTION_DIMENSION_DIFFERS),
        ({"language_instruction": [b"a", b"b"]}, RejectReason.INSTRUCTION_AMBIGUOUS),
        ({"language_instruction": [b"caf\xe9"] * STEPS}, RejectReason.INSTRUCTION_MISSING),
        ({"language_instruction": [b"nan"] * STEPS}, RejectReason.INSTRUCTION_MISSING),
        ({"observation__image": [b"no picture"] * STEPS}, RejectReason.IMAGE_UNDECODABLE),
    ],
)
def test_spoilt_episodes_are_rejected_by_name(
    tmp_path: Path, changes: dict[str, Any], reason: RejectReason
) -> None:
    source = open_source(write(tmp_path, "our_lab", [spoil(**changes)]))
    with pytest.raises(EpisodeRejected) as caught:
        consume(source, 0)
    assert caught.value.reason is reason
    assert len(source.read_columns(source.episodes[1]).action) == STEPS


def test_metadata_that_lies_about_shards_is_reported(tmp_path: Path) -> None:
    source, _ = make(tmp_path, "bc_z", declared=[5, 1])
    assert any("declares 5 episodes, there are 2" in w for w in source.info.warnings)
    assert len(source.episodes) == 3


@pytest.mark.parametrize(
    "splits",
    [["train"], [{"shardLengths": ["2"]}], [{"name": "train", "shardLengths": ["two"]}], 5],
)
def test_splits_that_mean_nothing_are_one_error(tmp_path: Path, splits: Any) -> None:
    root = tmp_path / "bc_z" / "1.0.0"
    make(root, "bc_z")
    info = json.loads((root / "dataset_info.json").read_text())
    (root / "dataset_info.json").write_text(json.dumps(info | {"splits": splits}))
    with pytest.raises(UserError, match=r"dataset_info\.json.*(splits|shardLengths)"):
        open_source(root)
    (root / "dataset_info.json").write_text(json.dumps(info | {"splits": None}))
    assert len(open_source(root).episodes) == 3


def test_splits_and_folders_without_data_are_clear_errors(tmp_path: Path) -> None:
    make(tmp_path / "bc_z" / "1.0.0", "bc_z")
    with pytest.raises(UserError, match=r"unknown split 'tarin'.*Did you mean 'train'"):
        open_source(f"{tmp_path}/bc_z/1.0.0#tarin")
    assert len(open_source(f"{tmp_path}/bc_z/1.0.0#train").episodes) == 3
    with pytest.raises(UserError, match=r"Datasets inside it: .*1\.0\.0"):
        open_source(tmp_path / "bc_z")
    for path in (tmp_path / "bc_z" / "1.0.0").glob("*.tfrecord-*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no .*tfrecord.* shard"):
        open_source(tmp_path / "bc_z" / "1.0.0")
