from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from molmoact_data import schema
from molmoact_data.config import as_dict, content_hash
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.labels.actions import bin_actions, chunk, normalize
from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.quality import episode_sums, merge, summarise
from molmoact_data.labels.traces import TraceConfig, episode_traces
from molmoact_data.outputs.columns import label_columns
from molmoact_data.outputs.shards import ShardWriter
from molmoact_data.pictures.images import decode_image, encode_jpeg
from molmoact_data.report.curves import MAX_POINTS, gripper_curves, read_actions
from molmoact_data.report.data import FRAME_DISTANCE, NUM_WORST, read_report_data
from molmoact_data.report.depth import codes_map, depth_strips, open_tokenizer
from molmoact_data.report.findings import findings, overall
from molmoact_data.report.page import render, write_report
from molmoact_data.schema import RecordLayout
from molmoact_data.sources.base import EpisodeColumns
from molmoact_data.statistics import ActionSpec, DatasetStatistics, feature_statistics
from molmoact_data.teachers.registry import EMBEDDED_VQVAE
from vqvae.codec import VQVAECodec

FULL = RecordLayout(cameras=("primary",), action_dim=7, state_dim=None, depth_codes=100)
BARE = RecordLayout(
    cameras=("primary",), action_dim=None, state_dim=None, depth_codes=None, num_arms=None
)
FRAMES = 60


def columns_of(episode: int) -> EpisodeColumns:
    rng = np.random.default_rng(episode)
    frames = np.arange(FRAMES, dtype=np.int32)
    action = rng.normal(size=(FRAMES, 7)).astype(np.float32)
    action[:, 6] = action[:, 6] > 0
    task = "<script>alert(1)</script> & pick"
    return EpisodeColumns(
        episode, frames, (frames / 10).astype(np.float32), (task,) * FRAMES, action, None
    )


def labels_of(episode: int, columns: EpisodeColumns, stats: DatasetStatistics) -> EpisodeLabels:
    rng = np.random.default_rng(100 + episode)
    t = np.arange(FRAMES) / 20
    xy = np.stack([0.5 + 0.3 * np.sin(t), 0.5 + 0.2 * np.cos(t)], axis=1)[:, None]
    xy[rng.random(FRAMES) < 0.1] = rng.random(2)
    xy[rng.random(FRAMES) < 0.1] = np.nan
    points = GripperPoints(
        xy.astype(np.float32), rng.uniform(0.5, 1, (FRAMES, 1)).astype(np.float32)
    )
    bins, valid = chunk(bin_actions(normalize(columns.action, stats)), 8)
    return EpisodeLabels(
        depth_codes=rng.integers(0, 64, (FRAMES, 100)).astype(np.uint8),
        depth_range=rng.random((FRAMES, 2)).astype(np.float32),
        points=points,
        traces=episode_traces(points, TraceConfig()),
        action_bins=bins,
        num_valid_actions=valid,
    )


def write_output(
    root: Path, layout: RecordLayout, episodes: tuple[int, ...] = (0, 3, 4)
) -> Storage:
    """A finished output of a few small episodes, without the pipeline."""
    all_columns = {e: columns_of(e) for e in episodes}
    actions = np.concatenate([c.action for c in all_columns.values()])
    stats = DatasetStatistics(
        "robot", feature_statistics(actions), ActionSpec.default(7), None, len(actions), 3
    )
    name, sums = "data/episodes.parquet", []
    (root / "data").mkdir(parents=True)
    with ShardWriter(root / name, layout.arrow_schema()) as writer:
        for episode, columns in all_columns.items():
            labels = labels_of(episode, columns, stats) if layout is FULL else EpisodeLabels()
            sums.append(episode_sums(labels, num_frames=FRAMES, codebook_size=128))
            arrays: dict[str, Any] = label_columns(
                layout, dataset="robot", revision="r", columns=columns, labels=labels
            )
            shades = np.arange(FRAMES, dtype=np.uint8) * 4
            images = [encode_jpeg(np.full((48, 64, 3), s, dtype=np.uint8), 80) for s in shades]
            arrays["image_primary"] = pa.array(
                [{"bytes": b, "path": None} for b in images], schema.IMAGE_TYPE
            )
            writer.write(pa.table([arrays[n] for n in writer.schema.names], schema=writer.schema))
    fingerprint = {"labels": {"action_bins": 256, "action_chunk_size": 8}}
    reject = {"episode_index": 7, "reason": "video_missing", "detail": "no <file> at x.mp4"}
    manifest = {
        "schema_version": "1.0",
        "config_hash": content_hash(fingerprint),
        "statistics_sha256": stats.sha256(),
        "fingerprint": fingerprint,
        "dataset": {
            "name": "robot",
            "revision": "abc",
            "format": "lerobot-v3.0",
            "fps": 10.0,
            "robot_type": None,
            "warnings": ["declared 99 frames"],
        },
        "cameras": {"primary": "observation.images.front"},
        "layout": as_dict(layout),
        "teachers": {"depth": {"name": "a-teacher", "revision": "1", "licence": "CC-BY-NC-4.0"}},
        "counts": {
            "episodes": len(episodes),
            "frames": FRAMES * len(episodes),
            "shards": 1,
            "bytes": (root / name).stat().st_size,
            "rejected_episodes": 1,
        },
        "quality": summarise(merge(sums)).to_json(),
        "rejects_by_reason": {"video_missing": 1},
        "shards": [
            {
                "name": name,
                "rows": FRAMES * len(episodes),
                "num_bytes": (root / name).stat().st_size,
                "sha256": "0" * 64,
                "episodes": [[e, FRAMES] for e in episodes],
                "rejects": [reject],
                "quality": merge(sums).to_json(),
            }
        ],
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    if layout.action_dim is not None:
        (root / "dataset_statistics.json").write_text(json.dumps(stats.to_json()))
    (root / "rejects.jsonl").write_text(json.dumps({"dataset": "robot", **reject}) + "\n")
    return Storage(str(root))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return write_output(tmp_path_factory.mktemp("full"), FULL)


@pytest.fixture(scope="module")
def page(output: Storage) -> str:
    return render(output)


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) > 20
    assert all(source.startswith("data:image/") for source in sources)


def test_equal_outputs_give_equal_bytes(output: Storage, page: str, tmp_path: Path) -> None:
    twin = write_output(tmp_path / "twin", FULL)
    assert render(twin) == page
    write_report(tmp_path / "twin")
    assert (tmp_path / "twin" / "report.html").read_text() == page


def test_what_others_wrote_is_escaped(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; pick" in page
    assert "no &lt;file&gt; at x.mp4" in page


@pytest.mark.parametrize(
    "text",
    [
        "64 <small>of 128</small>",
        "1 of 4 episodes were rejected",
        "declared 99 frames",
        "CC-BY-NC-4.0",
        "observation.images.front",
        "no point now",
        "least sure frames",
        "dimension 6 · gripper",
    ],
)
def test_the_page_says_it(page: str, text: str) -> None:
    assert text in page


def rows_of(storage: Storage) -> list[dict[str, Any]]:
    return pq.read_table(Path(storage.root) / "data" / "episodes.parquet").to_pylist()


def test_the_worst_frames_are_the_least_sure_that_keep_their_distance(output: Storage) -> None:
    rows = [r for r in rows_of(output) if r["trace_reject_reason"] is None]
    data = read_report_data(output)
    surest = {(r.episode, r.frame) for r in data.surest}
    left = sorted(
        (r for r in rows if (r["episode_index"], r["frame_index"]) not in surest),
        key=lambda r: r["trace_quality"],
    )
    expected: list[float] = []
    taken: list[tuple[int, int]] = []
    for row in left:
        place = (row["episode_index"], row["frame_index"])
        near = [abs(place[1] - f) < FRAME_DISTANCE for e, f in taken if e == place[0]]
        if not any(near) and len(taken) < NUM_WORST:
            taken.append(place)
            expected.append(row["trace_quality"])
    assert [r.quality for r in data.worst] == pytest.approx(expected)


def test_every_reason_has_its_examples(output: Storage) -> None:
    rows = rows_of(output)
    reasons = {r["trace_reject_reason"] for r in rows} - {None}
    data = read_report_data(output)
    assert set(data.rejected) == reasons
    by_place = {(r["episode_index"], r["frame_index"]): r["trace_reject_reason"] for r in rows}
    for reason, refs in data.rejected.items():
        assert {by_place[ref.episode, ref.frame] for ref in refs} == {reason}


def test_histograms_equal_numpy(output: Storage) -> None:
    rows = rows_of(output)
    data = read_report_data(output)
    assert data.action_histogram_DB is not None
    assert data.heat_YX is not None
    action = np.array([r["action"] for r in rows], dtype=np.float32)
    for d, counts in enumerate(data.action_histogram_DB):
        expected, _ = np.histogram(action[:, d], bins=len(counts))
        assert np.abs(counts - expected).sum() <= 2  # float32 edges
        assert counts.sum() == len(action)
    points = np.array([p for r in rows for p in r["gripper_points"] if p is not None])
    expected, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=32, range=[[0, 1], [0, 1]])
    np.testing.assert_array_equal(data.heat_YX, expected)


def test_strips_are_means_of_quality(output: Storage) -> None:
    strips = read_report_data(output).strips
    shard = "data/episodes.parquet"
    assert list(strips) == [(shard, 0), (shard, 3), (shard, 4)]
    rows = [r["trace_quality"] for r in rows_of(output) if r["episode_index"] == 3]
    assert strips[shard, 3].mean() == pytest.approx(np.mean(rows), abs=1e-6)
    np.testing.assert_allclose(strips[shard, 3][::2], rows, atol=1e-6)  # 120 columns for 60 frames


def test_an_output_without_labels_still_has_a_page(tmp_path: Path) -> None:
    page = render(write_output(tmp_path / "bare", BARE))
    assert page.count("<figure>") > 0
    for absent in ("Trace quality", "Depth</h2>", "Depth codes", "Actions</h2>"):
        assert absent not in page


def test_rendering_does_not_depend_on_row_groups(
    output: Storage, page: str, tmp_path: Path
) -> None:
    twin = write_output(tmp_path / "twin", FULL)
    path = tmp_path / "twin" / "data" / "episodes.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    assert render(replace(twin, root=str(tmp_path / "twin"))) == page


def test_an_unfinished_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json.*--resume"):
        write_report(tmp_path)


def judged(output: Storage, teachers: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The findings and the overall verdict of the same output with other numbers, and nothing else wrong."""
    data = read_report_data(output)
    good = {"trace_coverage": 0.94, "jump_rate": 0.01, "forward_backward_agreement": None}
    good |= {"code_perplexity": 100.0, "code_change_rate": 0.2}
    data.manifest = replace(
        data.manifest,
        quality={**data.manifest.quality, **good, **changes},
        counts=replace(data.manifest.counts, rejected_episodes=0),
        dataset=replace(data.manifest.dataset, warnings=()),
        teachers=teachers or {},
    )
    found = findings(data)
    return found, overall(found)


def verdict_of(found: Any, words: str) -> str:
    (verdict,) = (f.verdict for f in found if words in f.headline)
    return verdict


def test_where_all_is_green_the_overall_verdict_is_green_and_asks_for_nothing(
    output: Storage,
) -> None:
    found, whole = judged(output)
    assert {f.verdict for f in found} == {"good"}
    assert (whole.verdict, whole.next_steps) == ("good", ())


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"jump_rate": 0.30}, "steps jump"),
        ({"forward_backward_agreement": 0.3}, "agree both ways"),
    ],
)
def test_coverage_is_not_green_while_what_it_rests_on_is_red(
    output: Storage, changes: dict[str, float], doubt: str
) -> None:
    found, whole = judged(output, **changes)
    assert verdict_of(found, doubt) == "bad"
    assert verdict_of(found, "usable trace") == "warn"
    (coverage,) = (f for f in found if "usable trace" in f.headline)
    assert doubt in coverage.meaning
    assert whole.verdict == "bad"
    assert doubt in found[0].headline
    assert whole.next_steps[0] == found[0].next_step != ""


@pytest.mark.parametrize(("rate", "coverage"), [(0.05, "good"), (0.10, "good"), (0.101, "warn")])
def test_only_red_jumps_take_the_green_from_coverage(
    output: Storage, rate: float, coverage: str
) -> None:
    found, _ = judged(output, jump_rate=rate)
    assert verdict_of(found, "usable trace") == coverage


def test_a_pointer_that_does_not_know_the_pictures_makes_no_coverage_green(output: Storage) -> None:
    found, whole = judged(output, teachers={"gripper_pointer": {"name": "embedded"}})
    assert verdict_of(found, "usable trace") == "warn"
    assert found[0].headline == "Demo teachers made these labels (gripper pointer)"
    assert "--pointer molmo" in whole.next_steps[0]


def test_one_yellow_finding_makes_the_whole_yellow(output: Storage) -> None:
    _, whole = judged(output, code_change_rate=0.6)
    assert (whole.verdict, len(whole.next_steps)) == ("warn", 1)
    assert "1 yellow of" in whole.meaning


def test_whatever_is_not_green_says_what_to_do(output: Storage) -> None:
    found = findings(read_report_data(output))
    assert {f.headline for f in found if f.verdict != "good" and not f.next_step} == set()
    assert [f.headline for f in found if f.verdict == "good" and f.next_step] == []


def test_the_page_opens_with_the_overall_verdict_and_calls_nothing_best(page: str) -> None:
    assert page.count('<div class="verdict bad">') == 1
    assert page.index('<div class="verdict') < page.index('<ul class="findings">')
    assert "What to do next" in page
    assert "The surest frames" in page
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert re.findall(r"(?i)\b(?:best|good) frames", text) == []


def with_codes(root: Path, recipe: str, *, vqvae: str = "embedded", **card: str) -> Storage:
    """An output whose every frame has the packaged VQ-VAE's codes of one depth map, nearer to the right."""
    storage = write_output(root, FULL)
    codec = VQVAECodec(EMBEDDED_VQVAE, recipe=recipe, device="cpu")
    nearer_to_the_right = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    codes = codec.encode(nearer_to_the_right[None])[0].astype(np.uint8)
    path = root / "data" / "episodes.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("depth_codes")
    column = pa.array([codes.tolist()] * len(table), table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), column), path)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["teachers"]["depth_tokenizer"] = {**codec.describe(), **card}
    manifest["teachers"]["depth"]["encoder"] = "vits"
    manifest["fingerprint"]["labels"]["vqvae"] = vqvae
    manifest["config_hash"] = content_hash(manifest["fingerprint"])
    (root / "manifest.json").write_text(json.dumps(manifest))
    return storage


def strips_of(storage: Storage) -> Any:
    data = read_report_data(storage)
    strips = depth_strips(storage, data.manifest, data.depth)
    assert strips is not None
    return strips


def drawn(figure: Any) -> np.ndarray:
    return decode_image(base64.b64decode(figure.address.partition(",")[2])).astype(float)


def test_depth_is_shown_beside_the_picture_with_its_recipe(tmp_path: Path) -> None:
    storage = with_codes(tmp_path / "right", "checkpoint")
    strips = strips_of(storage)
    for words in ("depth by a-teacher", "encoder vits", "range signed", "resize nearest"):
        assert words in strips.lead
    assert {figure.verdict for figure in strips.figures} == {"good"}
    assert len({figure.name for figure in strips.figures}) == len(strips.figures) == 6
    strip = drawn(strips.figures[0])
    frame = int(strips.figures[0].name.rpartition(" ")[2])
    picture, depth = np.split(strip, 2, axis=1)
    assert picture.mean() == pytest.approx(frame * 4, abs=3)  # the frame's own shade
    fifths = [part.mean() for part in np.array_split(depth.mean(axis=(0, 2)), 5)]
    assert (np.diff(fifths) > 0).all(), fifths
    assert "Depth</h2>" in render(storage)


def test_codes_of_the_wrong_range_are_yellow(tmp_path: Path) -> None:
    strips = strips_of(with_codes(tmp_path / "wrong", "reference"))
    assert "range unit" in strips.lead
    assert {figure.verdict for figure in strips.figures} == {"warn"}


def test_without_their_vqvae_the_codes_are_shown_and_the_page_says_so(
    output: Storage, page: str, tmp_path: Path
) -> None:
    assert "was not at hand" in page  # its manifest names no VQ-VAE
    other = with_codes(tmp_path / "other", "checkpoint", revision="sha256:" + "0" * 64)
    assert "was not at hand" in strips_of(other).lead
    counted = codes_map(np.arange(100), 100)
    np.testing.assert_array_equal(counted[..., 0].ravel(), np.rint(np.arange(100) * 255 / 99))
    assert counted.shape == (10, 10, 3)
    assert codes_map(np.arange(200), 200).shape == (20, 10, 3)  # two levels, one above the other


def test_the_vqvae_that_the_run_named_is_known_by_its_hash(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    own = tmp_path / "own.safetensors"
    with safe_open(EMBEDDED_VQVAE, "pt") as file:
        weights = {name: file.get_tensor(name) * 1.5 for name in file.keys()}  # noqa: SIM118
        save_file(weights, own, metadata=file.metadata())
    revision = VQVAECodec(own, device="cpu").describe()["revision"]
    named = with_codes(tmp_path / "named", "checkpoint", vqvae=str(own), revision=revision)
    manifest = read_report_data(named).manifest
    found = open_tokenizer(manifest)
    assert found is not None
    assert found.describe()["revision"] == revision
    own.write_bytes(b"something else by now")
    assert open_tokenizer(manifest) is None
    own.unlink()
    assert open_tokenizer(manifest) is None


def test_the_gripper_is_drawn_over_the_frames_of_whole_episodes(output: Storage) -> None:
    data = read_report_data(output)
    (curve,) = gripper_curves(output, data)
    assert curve.name == "dimension 6"
    for episode in (0, 3, 4):
        assert f"<title>episode {episode}</title>" in curve.chart
    numbers = re.findall(r"<span>([^<]*)</span>", curve.chart)
    assert numbers[:3] == ["1", "0.5", "0"]  # the y axis from above: the gripper is 0 or 1
    lines = re.findall(r'<polyline points="([^"]*)"', curve.chart)
    heights = [float(place.partition(",")[2]) for place in lines[1].split()]
    recorded = columns_of(3).action[:, 6]
    assert len(heights) == FRAMES <= MAX_POINTS
    low, high = max(heights), min(heights)
    np.testing.assert_allclose([(low - h) / (low - high) for h in heights], recorded, atol=0.01)


def test_the_gripper_curve_takes_an_episode_across_row_groups(
    output: Storage, tmp_path: Path
) -> None:
    write_output(tmp_path / "twin", FULL)
    path = tmp_path / "twin" / "data" / "episodes.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    key = ("data/episodes.parquet", 3)
    actions = read_actions(Storage(str(tmp_path / "twin")), [key])
    np.testing.assert_array_equal(actions[key], columns_of(3).action)


def test_dimensions_have_the_names_that_the_source_gives_them(
    page: str, output: Storage, tmp_path: Path
) -> None:
    assert "<h3>dimension 0</h3>" in page  # an output of before: its manifest names none
    named = write_output(tmp_path / "named", FULL)
    manifest = json.loads((tmp_path / "named" / "manifest.json").read_text())
    names = ["x", "y", "z", "roll", "pitch", "yaw", "<hand>"]
    manifest["dataset"]["action_names"] = names
    (tmp_path / "named" / "manifest.json").write_text(json.dumps(manifest))
    read = read_report_data(named).manifest
    assert read.to_json()["dataset"]["action_names"] == names
    assert "action_names" not in read_report_data(output).manifest.to_json()["dataset"]
    told = render(named)
    for heading in ("0 · x", "5 · yaw", "6 · &lt;hand&gt; · gripper", "6 · &lt;hand&gt;"):
        assert f"<h3>{heading}</h3>" in told
    assert "dimension 0</h3>" not in told
