"""Every export is read back by the program it is for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from golden import GOLDEN, SHARED_DATA
from made_outputs import DotSource

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.exporters import ExportOptions, export
from molmoact_data.outputs.output import Output
from molmoact_data.text.prompts import parse


def exported(root: Path, target: Path, format_name: str, **options) -> Path:
    export(str(root), target, format_name, ExportOptions(**options), overwrite=False)
    return target


def test_reference_action_strings_are_those_of_the_reference_itself(make_output, tmp_path):
    import datasets

    golden = json.loads((GOLDEN / "preprocess" / "actions.json").read_text())
    arrays = np.load(GOLDEN / "preprocess" / "actions.npz")
    lengths = [5, 8]  # episodes 1 and 3 are short enough for the moving dot
    starts = np.cumsum([0, *arrays["episode_lengths"]])
    wanted = [i for e in (1, 3) for i in range(starts[e], starts[e + 1])]

    class GoldenActions(DotSource):
        def read_columns(self, ref, extra=()):
            start = [0, 5][ref.episode_index]
            rows = wanted[start : start + ref.num_frames]
            columns = super().read_columns(ref, extra)
            return type(columns)(**{**vars(columns), "action": arrays["actions"][rows]})

    from molmoact_data.statistics import ActionSpec, DatasetStatistics, feature_statistics

    statistics = DatasetStatistics(
        "dots", feature_statistics(arrays["actions"]), ActionSpec.default(7), None, 110, 4
    )
    out = make_output(source=GoldenActions(lengths=lengths), statistics=statistics)

    saved = datasets.load_from_disk(str(exported(out, tmp_path / "ref", "reference")))

    with_path = [i for i in wanted if i + 1 not in starts]  # the last frame's trace is one point
    for row, index in zip(saved, with_path, strict=True):
        action = json.loads(row["processed_action"])
        assert action["chunked_action"] == golden["chunked_action"][index]
        assert action["tokenized_action"] == golden["tokenized_action"][index]
        np.testing.assert_allclose(
            action["normalized_action"], arrays["normalized"][index], atol=1e-6
        )


def with_a_path(root):
    """Rows whose every arm has at least two points: the last frame of an episode has one, its own."""
    rows = list(Output.open(root).rows())
    found = [r for r in rows if r[schema.TRACE] and min(map(len, r[schema.TRACE])) > 1]
    assert 0 < len(found) < len(rows)
    return found


def test_conversations_load_with_datasets_and_parse_back_to_the_record(make_output, tmp_path):
    import datasets

    out = make_output()
    target = exported(out, tmp_path / "conv", "conversations")
    files = [str(p) for p in (target / "data").glob("*.parquet")]

    rows = datasets.load_dataset("parquet", data_files=files, split="train")

    assert rows.column_names == ["image", "wrist", "conversations", "annotation"]
    assert rows[0]["image"].size == (64, 48)
    for row, ours in zip(rows, with_a_path(out), strict=True):
        asked, told = row["conversations"]["value"]
        assert row["conversations"]["from"] == ["human", "gpt"]
        assert ours[schema.INSTRUCTION] in asked
        parsed = parse(told, action_dim=7)
        assert parsed.problems == []
        assert parsed.action_bins == ours[schema.ACTION_BINS]
        if row["annotation"] is None:
            assert parsed.depth_codes == [ours[schema.DEPTH_CODES]]
            assert parsed.traces == ours[schema.TRACE]
        else:
            assert json.loads(row["annotation"]) == ours[schema.TRACE][0]
    kinds = [annotation is None for annotation in rows["annotation"]]
    assert kinds[:4] == [True, False, True, False]


def test_single_actions_are_flat_lists(make_output, tmp_path):
    target = exported(make_output(), tmp_path / "conv", "conversations", single_action=True)

    table = pq.read_table(target / "data" / "train-00000.parquet")
    told = table["conversations"][0].as_py()["value"][1]

    assert len(parse(told, action_dim=7).action_bins) == 1


def test_rows_without_a_usable_trace_are_left_out_of_text_and_counted(make_output, tmp_path):
    from made_outputs import BrightestPixel, FakeDepth, FakeTokenizer

    from molmoact_data.labels.pointing import GripperPoints
    from molmoact_data.teachers.choice import Teachers

    class Blind(BrightestPixel):
        """Finds nothing in the first frame of every batch."""

        def point(self, rgb_NHWC, prompt):
            found = super().point(rgb_NHWC, prompt)
            found.xy_NA2[0], found.confidence_NA[0] = np.nan, 0
            return GripperPoints(found.xy_NA2, found.confidence_NA)

    out = make_output(teachers=Teachers(FakeDepth(), FakeTokenizer(), Blind()))
    rejected = sum(r[schema.TRACE_REJECT_REASON] is not None for r in Output.open(out).rows())
    left_out = 33 - len(with_a_path(out))
    assert left_out > rejected > 0

    for name in ("reference", "conversations"):
        result = export(str(out), tmp_path / name, name, ExportOptions(), overwrite=False)
        assert result.left_out == {"no_usable_trace": left_out}
        assert result.rows == 33 - left_out


@pytest.fixture
def lerobot_dataset(make_output, tmp_path):
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    out = make_output()
    root = exported(out, tmp_path / "lr", "lerobot")
    return LeRobotDataset("local/lr", root=root), list(Output.open(out).rows())


def test_lerobot_itself_loads_the_export_with_our_labels(lerobot_dataset):
    dataset, ours = lerobot_dataset

    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (4, 33, 10)
    for index in (0, 14, 32):
        item, row = dataset[index], ours[index]
        np.testing.assert_allclose(item["action"], row[schema.ACTION], rtol=1e-6)
        np.testing.assert_allclose(item["observation.state"], row[schema.STATE], rtol=1e-6)
        assert item["depth_codes"].tolist() == row[schema.DEPTH_CODES]
        assert item["action_bins"].tolist() == row[schema.ACTION_BINS]
        assert item["task"] == row[schema.INSTRUCTION]
        assert item["episode_index"] == row[schema.EPISODE_INDEX]
        assert item["frame_index"] == row[schema.FRAME_INDEX]
        trace, points = np.array(item["trace"])[0].reshape(5, 2), row[schema.TRACE][0]
        assert trace[: int(item["trace_num_points"])].tolist() == points
        assert (trace[len(points) :] == points[-1]).all()
        assert item["observation.images.primary"].shape == (3, 48, 64)


def test_lerobot_statistics_are_there_for_every_feature_and_exact(lerobot_dataset):
    dataset, ours = lerobot_dataset

    raw = np.array([row[schema.ACTION] for row in ours], dtype=np.float64)
    np.testing.assert_allclose(dataset.meta.stats["action"]["q99"], np.quantile(raw, 0.99, axis=0))
    assert set(dataset.meta.camera_keys) <= set(dataset.meta.stats)
    assert dataset.meta.stats["observation.images.wrist"]["mean"].shape == (3, 1, 1)


def test_our_own_source_reads_the_lerobot_export_back(make_output, tmp_path):
    from molmoact_data.sources.opening import open_source

    out = make_output()
    source = open_source(str(exported(out, tmp_path / "lr", "lerobot")))
    columns = source.read_columns(source.episodes[2])
    frames = next(source.iter_frames(source.episodes[2], ["observation.images.primary"], 4))

    whole = DotSource()
    np.testing.assert_array_equal(columns.action, whole.read_columns(whole.episodes[2]).action)
    stored = list(Output.open(out).rows())[21][schema.image_column("primary")]["bytes"]
    assert frames["observation.images.primary"].encoded[0] == stored


def test_an_export_never_overwrites_and_a_failed_one_leaves_nothing(make_output, tmp_path):
    out, target = make_output(), tmp_path / "ref"
    exported(out, target, "reference")
    with pytest.raises(UserError, match="--overwrite"):
        exported(out, target, "reference")

    deep = make_output("bins", action_bins=512)
    with pytest.raises(UserError, match="retokenize"):
        exported(deep, tmp_path / "other", "reference")
    assert [p.name for p in tmp_path.iterdir() if "other" in p.name] == []


def test_an_unknown_format_names_the_nearest(make_output, tmp_path):
    with pytest.raises(UserError, match="Did you mean 'lerobot'"):
        exported(make_output(), tmp_path / "x", "lerobott")


def output_of(root: Path, dataset: Path) -> Path:
    """A real output of a dataset on disk, with fake depth codes."""
    from made_outputs import FakeDepth, FakeTokenizer

    from molmoact_data.files.storage import Storage
    from molmoact_data.outputs.shards import plan_shards
    from molmoact_data.sources.opening import open_source
    from molmoact_data.teachers.choice import Teachers
    from pipelines.config import LabelConfig
    from pipelines.job import Job
    from pipelines.shards import manifest
    from pipelines.shards.build import build_shard

    source = open_source(str(dataset))
    teachers = Teachers(FakeDepth(), FakeTokenizer(), None)
    labels = LabelConfig(vqvae="fake", pointer="none", process_actions=False)
    job = Job(
        dataset_path=str(dataset),
        revision=None,
        source=source.info,
        cameras={"primary": source.info.cameras[0].key},
        labels=labels,
        statistics=None,
        layout=schema.RecordLayout(("primary",), None, None, num_arms=None),
        output=Storage(str(root)),
        teachers=teachers.describe(),
    )
    specs = plan_shards(source.episodes, 300, job.config_hash)
    manifest.write(job, [build_shard(job, s, source, teachers, lambda _: None) for s in specs])
    return root


def brute_force_companion(rgb_TNHWC, codes_TG, threshold):
    """The definition, patch by patch in plain loops."""
    import cv2

    buffer, columns = None, []
    for t, codes in enumerate(codes_TG):
        updated = [True] * 100
        if t > 0:
            before, now = (
                cv2.resize(rgb_TNHWC[i][..., ::-1], (320, 320), interpolation=cv2.INTER_LINEAR)
                for i in (t - 1, t)
            )
            for row in range(10):
                for column in range(10):
                    box = np.s_[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                    a, b = (frame[box].astype(np.float64).ravel() for frame in (before, now))
                    norms = np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())
                    similarity = 1.0 if norms < 1e-8 else (a * b).sum() / norms
                    updated[10 * row + column] = bool(similarity < threshold)
        buffer = [c if u else k for c, u, k in zip(codes, updated, buffer or codes, strict=True)]
        columns.append((list(codes), buffer, updated))
    return columns


@pytest.fixture
def still_scene(make_output, tmp_path):
    """A v3.0 dataset of stored images in which little moves."""

    class StillScene(DotSource):
        def frames(self, ref, camera):
            rng = np.random.default_rng(ref.episode_index)
            scene = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
            scene[:, 40:] = 0  # black patches have no norm
            rgb = np.repeat(scene[None], ref.num_frames, axis=0)
            for t in range(ref.num_frames):
                rgb[t, 5:15, 2 * t : 2 * t + 8] = 255
            return rgb

    return exported(make_output("scene", source=StillScene()), tmp_path / "dataset", "lerobot")


def check_companion(dataset: Path, root: Path, tmp_path: Path) -> None:
    from molmoact_data.sources.opening import open_source

    target = exported(root, tmp_path / "companion", "molmoact2-depth", source=str(dataset))
    table = pq.read_table(target / "data")
    source, stored = open_source(str(dataset)), Output.open(root)
    key = source.info.cameras[0].key
    codes = [r[schema.DEPTH_CODES] for r in stored.rows([schema.DEPTH_CODES])]
    ours = list(
        zip(
            *(table[n].to_pylist() for n in ("depth_codes", "buffer_codes", "depth_updated_mask")),
            strict=True,
        )
    )
    start, changes = 0, 0
    for ref in source.episodes:
        rgb = np.concatenate([b[key].rgb_NHWC for b in source.iter_frames(ref, [key], 50)])
        part = slice(start, start + len(rgb))
        expected = brute_force_companion(rgb, codes[part], 0.996)
        assert [tuple(map(list, row)) for row in ours[part]] == expected
        changes += sum(sum(mask) for _, _, mask in expected)
        start += len(rgb)
    assert start == table.num_rows
    assert 0.01 < changes / (100 * start) < 0.99  # neither nothing nor everything moves
    info = json.loads((target / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["depth_vae"]["cosine_threshold"] == 0.996
    assert info["depth_vae"]["image_key"] == key
    assert info["features"]["depth_updated_mask"] == {
        "dtype": "bool",
        "shape": [100],
        "names": None,
    }


def test_the_depth_companion_equals_a_brute_force_computation(still_scene, tmp_path):
    check_companion(still_scene, output_of(tmp_path / "codes", still_scene), tmp_path)


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_the_companion_of_a_video_dataset_links_its_videos_and_loads(version, tmp_path):
    dataset = SHARED_DATA / f"libero_rollouts_{version}"
    if not dataset.is_dir():
        pytest.skip("the shared real datasets are not beside this checkout")
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = output_of(tmp_path / "codes", dataset)
    target = exported(root, tmp_path / "x_depth", "molmoact2-depth", source=str(dataset))

    loaded = LeRobotDataset("local/x_depth", root=target, video_backend="pyav")
    assert loaded.num_frames == 669
    item, row = loaded[300], list(Output.open(root).rows([schema.DEPTH_CODES]))[300]
    assert item["depth_codes"].tolist() == row[schema.DEPTH_CODES]
    assert item["observation.images.image"].shape == (3, 256, 256)
    videos = list((target / "videos").rglob("*.mp4"))
    assert videos
    assert all(dataset.resolve() in video.resolve().parents for video in videos)


def test_the_companion_of_an_rlds_dataset_is_a_v30_dataset_with_its_images(tmp_path):
    dataset = SHARED_DATA / "bridge-rlds-octo" / "bridge_dataset" / "1.0.0"
    if not dataset.is_dir():
        pytest.skip("the shared real datasets are not beside this checkout")
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from molmoact_data.sources.opening import open_source

    root = output_of(tmp_path / "codes", dataset)
    target = exported(root, tmp_path / "bridge_depth", "molmoact2-depth", source=str(dataset))

    loaded, source = LeRobotDataset("local/bridge_depth", root=target), open_source(str(dataset))
    assert (loaded.num_episodes, loaded.num_frames) == (25, 250)
    ref = source.episodes[3]
    columns, item = source.read_columns(ref), loaded[34]
    np.testing.assert_allclose(item["action"], columns.action[4], rtol=1e-6)
    assert item["task"] == columns.instructions[4]
    codes = list(Output.open(root).rows([schema.DEPTH_CODES]))[34][schema.DEPTH_CODES]
    assert item["depth_codes"].tolist() == codes
    key = source.info.cameras[0].key
    stored = next(source.iter_frames(ref, [key], 10))[key].rgb_NHWC[4]
    np.testing.assert_allclose(item[key].permute(1, 2, 0) * 255, stored, atol=0.5)


def test_a_companion_needs_the_codes_of_every_episode(make_output, still_scene, tmp_path):
    short = make_output("short", source=DotSource(lengths=(12, 9)))
    with pytest.raises(UserError, match="2 of 4 episodes"):
        exported(short, tmp_path / "companion", "molmoact2-depth", source=str(still_scene))


def test_a_companion_needs_its_source(make_output, tmp_path):
    with pytest.raises(UserError, match="--dataset-path"):
        exported(make_output(), tmp_path / "companion", "molmoact2-depth")
