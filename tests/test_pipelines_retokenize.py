"""Retokenised and merged outputs are what a fresh run would have written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from made_outputs import BrightestPixel, DotSource, FakeDepth, FakeTokenizer, source_statistics

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.measuring import (
    action_statistics,
    lerobot_statistics,
    lerobot_statistics_of,
)
from molmoact_data.outputs.output import Output
from molmoact_data.validate import validate
from pipelines.merge import merge, merged_header
from pipelines.retokenize import RetokenizeConfig, retokenize

LATER = DotSource(lengths=(6, 11), first_episode=4)


def tree(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name != schema.REPORT_FILE)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def retokenized(source: Path, target: Path, config: RetokenizeConfig, **flags: bool) -> Path:
    retokenize(
        Output.open(source),
        Storage(str(target)),
        config,
        resume=flags.get("resume", False),
        overwrite=flags.get("overwrite", False),
    )
    return target


def merged(target: Path, *sources: Path) -> Path:
    merge([Output.open(s) for s in sources], Storage(str(target)), resume=False, overwrite=False)
    return target


def test_retokenising_equals_a_fresh_run_with_the_new_settings_byte_for_byte(make_output, tmp_path):
    wider = source_statistics(DotSource(lengths=(40,)))
    fresh = make_output("fresh", statistics=wider, action_bins=64, action_chunk_size=4)
    old = make_output("old")
    config = RetokenizeConfig(statistics=wider, action_bins=64, action_chunk_size=4)

    new = retokenized(old, tmp_path / "new", config)

    assert tree(new) == tree(fresh)
    assert tree(new) != tree(old)
    assert validate(str(new)).passed


def test_retokenising_never_touches_images_codes_or_traces(make_output, tmp_path):
    old = make_output("old")
    new = retokenized(old, tmp_path / "new", RetokenizeConfig(action_bins=32))

    kept = [
        name
        for name in Output.open(old).layout.arrow_schema().names
        if name not in (schema.ACTION_BINS, schema.NUM_VALID_ACTIONS)
    ]
    before = list(Output.open(old).rows(kept))
    assert list(Output.open(new).rows(kept)) == before
    bins = np.array([row[schema.ACTION_BINS] for row in Output.open(new).rows()])
    assert bins.max() <= 32


def test_retokenise_resumes_and_rebuilds_only_what_is_missing(make_output, tmp_path):
    old, config = make_output("old"), RetokenizeConfig(action_bins=64)
    new = retokenized(old, tmp_path / "new", config)
    whole = tree(new)
    victim = next(name for name in whole if name.endswith(".parquet"))
    (new / victim).unlink()

    summary = retokenize(Output.open(old), Storage(str(new)), config, resume=True, overwrite=False)

    assert summary.shards_built == 1
    assert tree(new) == whole


def test_retokenise_refuses_statistics_of_another_robot(make_output, tmp_path):
    other = source_statistics(DotSource(action_dim=6))
    with pytest.raises(UserError, match="6 action dimensions"):
        retokenized(make_output(), tmp_path / "new", RetokenizeConfig(statistics=other))


def test_retokenise_never_overwrites_by_itself(make_output, tmp_path):
    out = make_output()
    with pytest.raises(UserError, match="is what is read"):
        retokenized(out, out, RetokenizeConfig(action_bins=64))
    with pytest.raises(UserError, match="--overwrite"):
        retokenized(out, make_output("other"), RetokenizeConfig(action_bins=64))


def test_merging_the_halves_of_a_dataset_gives_the_rows_of_the_whole(make_output, tmp_path):
    whole = DotSource(lengths=(12, 9, 7, 5, 6, 11))
    statistics = source_statistics(whole)
    make = {"statistics": statistics}
    first = make_output("first", source=DotSource(), **make)
    second = make_output("second", source=LATER, **make)
    at_once = make_output("whole", source=whole, **make)

    both = merged(tmp_path / "both", first, second)

    assert list(Output.open(both).rows()) == list(Output.open(at_once).rows())
    assert validate(str(both)).passed
    assert Output.open(both).manifest.counts.episodes == 6


def test_merging_two_datasets_keeps_both_names_and_validates(make_output, tmp_path):
    dots, spots = DotSource(), DotSource(name="spots")
    statistics = source_statistics(dots, key="both")
    one = make_output("one", source=dots, statistics=statistics)
    two = make_output("two", source=spots, statistics=statistics)

    both = merged(tmp_path / "both", one, two)

    names = {row[schema.DATASET] for row in Output.open(both).rows([schema.DATASET])}
    assert names == {"dots", "spots"}
    assert validate(str(both)).to_json()["findings"] == {}


def test_merge_refuses_other_statistics_and_says_what_to_run(make_output, tmp_path):
    one = make_output("one")
    two = make_output("two", source=DotSource(name="spots"))
    with pytest.raises(UserError, match=r"statistics_sha256.*molmoact stats"):
        merged(tmp_path / "both", one, two)


def test_statistics_over_both_make_two_outputs_mergeable(make_output, tmp_path):
    paths = [make_output("one"), make_output("two", source=DotSource(name="spots"))]
    common = action_statistics([str(p) for p in paths], key="both")
    config = RetokenizeConfig(statistics=common)
    again = [retokenized(path, tmp_path / f"{path.name}-again", config) for path in paths]

    both = merged(tmp_path / "both", *again)

    assert validate(str(both)).passed
    assert Output.open(both).statistics.num_transitions == 66


def test_merge_refuses_another_depth_recipe(make_output, tmp_path):
    from molmoact_data.teachers.choice import Teachers

    class UnitTokenizer(FakeTokenizer):
        def describe(self) -> dict[str, str]:
            return {**super().describe(), "range": "unit"}

    statistics = source_statistics(DotSource())
    one = make_output("one", statistics=statistics)
    two = make_output(
        "two",
        source=LATER,
        statistics=statistics,
        teachers=Teachers(FakeDepth(), UnitTokenizer(), BrightestPixel()),
    )
    with pytest.raises(UserError, match=r"teachers.depth_tokenizer.range.*never merge"):
        merged(tmp_path / "both", one, two)


def test_merge_refuses_an_episode_that_is_in_both(make_output, tmp_path):
    with pytest.raises(UserError, match="episode 0 of dots"):
        merged(tmp_path / "both", make_output("one"), make_output("two", frames_per_shard=100))


def test_names_of_dimensions_are_kept_and_merged_where_all_sources_agree(make_output, tmp_path):
    def named(path: Path, *names: str) -> Path:
        """The finished output at `path`, as a source with these names would have left it."""
        manifest = Output.open(path).manifest
        manifest = replace(manifest, dataset=replace(manifest.dataset, action_names=names))
        (path / schema.MANIFEST_FILE).write_bytes(manifest.to_bytes())
        return path

    one = named(make_output("one"), "x", "y")
    two = named(make_output("two", source=DotSource(name="spots")), "x", "y")
    other = named(make_output("other", source=DotSource(name="blots")), "x", "hand")
    opened = [Output.open(path) for path in (one, two, other)]

    assert merged_header(opened[:2]).dataset.action_names == ("x", "y")
    assert merged_header(opened).dataset.action_names == ()
    new = retokenized(one, tmp_path / "new", RetokenizeConfig(action_bins=32))
    assert Output.open(new).manifest.dataset.action_names == ("x", "y")


def test_merged_statistics_are_those_of_the_concatenated_rows(make_output):
    sources = [DotSource(), DotSource(name="spots", lengths=(13, 2))]
    paths = [str(make_output(s.name, source=s)) for s in sources]

    ours = action_statistics(paths, key="both")

    rows = [s.read_columns(ref).action for s in sources for ref in s.episodes]
    whole = np.concatenate(rows)
    np.testing.assert_array_equal(ours.action.q01, np.quantile(whole, np.float32(0.01), axis=0))
    np.testing.assert_array_equal(ours.action.q99, np.quantile(whole, np.float32(0.99), axis=0))
    np.testing.assert_allclose(ours.action.mean, whole.mean(axis=0), rtol=1e-5)
    assert (ours.num_transitions, ours.num_trajectories) == (48, 6)


def test_lerobot_quantiles_agree_with_pandas():
    values = np.random.default_rng(3).normal(size=(997, 2)).astype(np.float32)

    ours = lerobot_statistics(values)

    frame = pd.DataFrame(values.astype(np.float64))
    for name, q in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        np.testing.assert_allclose(ours[name], frame.quantile(q), rtol=1e-12)
    np.testing.assert_allclose(ours["std"], frame.std(ddof=0), rtol=1e-12)
    assert ours["count"] == [997]


def test_lerobot_statistics_of_an_output_are_those_of_its_raw_rows(make_output):
    out = make_output()
    ours = lerobot_statistics_of([str(out)], ["action", "observation.state"])

    table = pq.read_table(out / schema.DATA_DIR)
    raw = np.array(table[schema.ACTION].to_pylist(), dtype=np.float64)
    assert ours["action"]["q10"] == np.quantile(raw, 0.1, axis=0).tolist()
    assert len(ours["observation.state"]["mean"]) == 3
    assert json.dumps(ours)


def test_an_unknown_feature_names_what_there_is(make_output):
    with pytest.raises(UserError, match="no numeric feature 'torque'"):
        lerobot_statistics_of([str(make_output())], ["torque"])
