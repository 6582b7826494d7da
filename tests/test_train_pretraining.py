"""The whole published pre-training mixture over tiny copies of every set: rates, what is missing, a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_commands import Molmoact
from made_web import PictureServer, picture, write_everything

from molmoact_data.errors import UserError
from molmoact_data.web.catalogue import WEB_SETS
from molmoact_data.web.pictures import FetchConfig
from molmoact_train.config import resolve
from molmoact_train.data.published import group_of, published_mixture
from molmoact_train.data.split import SourceOptions, chosen_rows
from molmoact_train.families.molmoact.tiny import write_tiny_checkpoint
from pipelines.web.config import WebConfig
from pipelines.web.run import preprocess_web

ROBOTS = (
    "bc_z",
    "bridge_dataset",
    "fractal20220817_data",
    "auxiliary_depth",
    "auxiliary_trace",
    "lvis",
)


def robot_rows(folder: Path) -> None:
    """Four rows as the published mixtures have them."""
    folder.mkdir(parents=True)
    row = {
        "image": {"bytes": picture(), "path": None},
        "conversations": {"from": ["human", "gpt"], "value": ["What should it do?", "Nothing."]},
        "annotation": None,
    }
    pq.write_table(pa.Table.from_pylist([row] * 4), folder / "train-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    with PictureServer() as server:
        write_everything(folder / "raw", server)
        fetch = FetchConfig(private_hosts=(server.host,))
        base = WebConfig("", str(folder / "raw"), "", fetch=fetch, threads=2)
        for name in WEB_SETS:
            preprocess_web(replace(base, name=name, output_path=str(folder / "web" / name)))
    for name in ROBOTS:
        robot_rows(folder / "MolmoAct-Pretraining-Mixture" / name)
    return folder


def test_the_rates_are_the_published_ones(root: Path) -> None:
    mixture = published_mixture("pretrain", root)
    rates = {entry.name: mixture.rate(entry) for entry in mixture.sets}
    assert sum(rates.values()) == pytest.approx(1)
    for name, rate in {
        "bc_z": 0.15,
        "bridge_dataset": 0.25,
        "fractal20220817_data": 0.40,
        "lvis": 0.005,
    }.items():
        assert rates[name] == pytest.approx(rate)
    assert rates["auxiliary_depth"] == rates["auxiliary_trace"] == pytest.approx(0.075)
    general = {
        group: sum(rates[n] for n, s in WEB_SETS.items() if s.group == group)
        for group in ("demo", "vqa", "pointing")
    }
    assert general == pytest.approx({"demo": 0.0075, "vqa": 0.02, "pointing": 0.0175})
    # Inside a group by the square root of the rows: 4 of ChartQA against 1 of A-OKVQA.
    assert rates["chart_qa_weighted"] / rates["a_okvqa_mc"] == pytest.approx(2)


def test_a_size_that_the_authors_cap_counts_as_its_cap(root: Path) -> None:
    path = root / "web" / "dv_qa" / "web_manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["size_in_mixture"] == 1
    (entry,) = (s for s in published_mixture("pretrain", root).sets if s.name == "dv_qa")
    assert entry.size == 1
    assert WEB_SETS["dv_qa"].cap == 10_000


def test_what_is_missing_is_listed_with_its_share_and_its_command(
    root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as missing:
        published_mixture("pretrain", tmp_path)
    told = str(missing.value)
    assert "30 of 30 sets are not there" in told
    assert (
        "fractal20220817_data (40.00 %, group rt_1): molmoact download fractal20220817_data" in told
    )
    assert (
        f"molmoact preprocess-web pixmo_cap --input-path RAW --output-path {tmp_path / 'web' / 'pixmo_cap'}"
        in told
    )
    with pytest.raises(UserError, match="Did you mean 'pointing'"):
        published_mixture("pretrain", root, ["ponting"])
    with pytest.raises(UserError, match="goes with the stages pretrain, midtrain"):
        published_mixture("finetune", root)


def test_without_a_group_the_others_are_drawn_more_often_and_it_is_said(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = published_mixture("pretrain", root, ["vqa", "rt_1"])
    rates = {entry.name: mixture.rate(entry) for entry in mixture.sets}
    assert sum(rates.values()) == pytest.approx(1)
    assert rates["bc_z"] == pytest.approx(0.15 / 0.58)
    assert "chart_qa_weighted" not in rates
    assert "without vqa, rt_1: 42.00 % of the published draws go to the others" in caplog.text


def test_the_data_are_resolved_once_and_mistakes_are_told(root: Path) -> None:
    flags = {"checkpoint": "x", "output_path": "y"}
    config = resolve("pretrain", {**flags, "mixture": str(root), "without": ("demo",)})
    assert len(config.data) == 30 - 4
    with pytest.raises(UserError, match="not both"):
        resolve("pretrain", {**flags, "mixture": str(root), "data": ("a",)})
    with pytest.raises(UserError, match="needs --mixture"):
        resolve("pretrain", {**flags, "data": ("a",), "without": ("demo",)})


def test_the_plan_shows_the_table_and_a_few_steps_run(
    root: Path, molmoact: Molmoact, tmp_path: Path
) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "tiny")
    flags = [
        "--stage",
        "pretrain",
        "--mixture",
        root,
        "--checkpoint",
        tiny,
        "--output-path",
        tmp_path / "run",
    ]
    flags += [
        "--duration",
        "3",
        "--warmup",
        "1",
        "--global-batch-size",
        "4",
        "--device-batch-size",
        "4",
    ]
    flags += ["--device", "cpu", "--num-workers", "0"]
    code, out, err = molmoact("train", *flags, "--dry-run", "--json")
    assert code == 0, err
    rates = {entry["name"]: entry["rate"] for entry in json.loads(out)["sources"]}
    assert len(rates) == 30
    assert rates["fractal20220817_data"] == pytest.approx(0.40)
    code, out, err = molmoact("train", *flags, "--dry-run")
    assert code == 0, err
    told = " ".join(out.split())
    assert all(f"{name}: " in told for name in rates)
    assert "drawn 40.00% of the time" in told
    code, out, err = molmoact("train", *flags, "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 3


def test_every_group_has_a_held_out_loss_of_its_own(
    root: Path, molmoact: Molmoact, tmp_path: Path
) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "tiny")
    run = tmp_path / "run"
    code, _, err = molmoact(
        "train", "--stage", "pretrain", "--mixture", root, "--checkpoint", tiny, "--output-path", run,
        "--duration", "2", "--warmup", "1", "--global-batch-size", "2", "--device-batch-size", "2",
        "--device", "cpu", "--num-workers", "0", "--eval-fraction", "0.25", "--eval-samples", "10",
    )  # fmt: skip
    assert code == 0, err
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    groups = {n: v for n, v in last.items() if n.startswith("eval/group/")}
    named = {name.split("/")[2] for name in groups}
    assert named == set(published_mixture("pretrain", root).shares)
    losses = [value for name, value in groups.items() if name.endswith("/loss")]
    assert min(losses) <= last["eval/loss"] <= max(losses)
    assert "Held-out loss by group" in (run / "run.html").read_text()


def test_rows_are_trained_on_or_held_out_in_stretches() -> None:
    def part(size: int, *, held_out: bool) -> list[int]:
        options = SourceOptions({}, held_out_fraction=0.1, held_out=held_out, seed=3)
        return list(chosen_rows(size, options))

    for size in (1, 2, 4, 10, 1000, 12_345):
        trained, held = part(size, held_out=False), part(size, held_out=True)
        assert sorted(trained + held) == list(range(size))
        assert trained
        assert len(held) == pytest.approx(0.1 * size, abs=0.6)
    held = part(1000, held_out=True)
    assert all(row // 10 * 10 in held for row in held)
    assert list(chosen_rows(5, SourceOptions({}))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("pixmo_points_train", "pointing"),
        ("bc_z", "bc_z"),
        ("lvis", "bbox"),
        ("my_cups", "my_cups"),
    ],
)
def test_the_group_of_a_folder(name: str, group: str) -> None:
    assert group_of(name) == group
