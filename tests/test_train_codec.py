"""The model's codec is fixed, the flags are not: bins and codebooks are honoured or refused, never misread."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_training import open_training_data

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.labels.actions import bin_actions, normalize
from molmoact_data.outputs.output import Output
from molmoact_data.statistics import DatasetStatistics, read_entries
from molmoact_data.text.generated import ActionDecoder
from molmoact_data.text.prompts import answer, format_actions, parse
from molmoact_train.config import resolve
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import tiny_processor, write_tiny_checkpoint
from molmoact_train.families.molmoact.family import FAMILY
from molmoact_train.families.molmoact.grammar import AnswerShape, build_grammar
from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor, robot_actions
from molmoact_train.folders.layout import finish_folder, read_config
from molmoact_train.folders.statistics import merged

BINS = 32


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coarse")
    return write_debug_dataset(folder, episodes=3, frames=5, size=56, num_bins=BINS)


def opened(*folders: Path, **changes: Any) -> Any:
    given = {"checkpoint": "c", "data": [str(f) for f in folders], "output_path": "s"}
    return open_training_data(resolve("debug", given, changes), tiny_processor())


def test_the_bins_travel_with_the_statistics(coarse: Path) -> None:
    (source,) = opened(coarse).sources
    assert source.statistics.num_bins == BINS == Output.open(coarse).num_bins
    entry = source.statistics.to_json()
    assert DatasetStatistics.from_json(entry).num_bins == BINS
    assert read_entries(coarse / schema.STATISTICS_FILE)["debug/square"]["num_bins"] == BINS


def test_recorded_bins_come_back_as_the_recorded_actions(coarse: Path) -> None:
    """By prediction and by `parse`: within half a bin of 32, where bins of 256 would be far off."""
    (source,) = opened(coarse).sources
    entry = source.statistics.to_json()
    for index in range(source.size):
        row = source.row(index)
        found = robot_actions(row.action_bins.tolist(), "debug/square", entry["debug/square"])
        span = source.statistics.action.q99 - source.statistics.action.q01
        inside = np.clip(row.actions_HD, source.statistics.action.q01, source.statistics.action.q99)
        assert np.abs(found - inside)[:, :6].max() <= (0.5 * span * 1.001 / (BINS - 1) * 2).max()
        text = f"the action is {format_actions(row.action_bins)}."
        decoder = ActionDecoder.from_norm_stats(entry, None)
        again = parse(text, action_dim=7, num_bins=BINS)
        assert again.action_bins == row.action_bins.tolist()
        np.testing.assert_allclose(
            np.array(decoder.decode(text)["actions"])[:, :6], found[:, :6], atol=1e-6
        )
        assert (
            bin_actions(normalize(row.actions_HD, source.statistics), BINS) == row.action_bins
        ).all()


def test_a_token_beyond_the_bins_is_a_problem() -> None:
    text = f"take {format_actions([[BINS + 1, 3]])}."
    found = parse(text, action_dim=2, num_bins=BINS)
    assert found.action_bins == [[BINS, 3]]
    assert "out-of-range" in found.problems[0]
    assert parse(text, action_dim=2).problems == []


def test_an_answer_is_in_the_bins_of_its_statistics(coarse: Path, tmp_path: Path) -> None:
    entries = read_entries(coarse / schema.STATISTICS_FILE)
    folder = write_tiny_checkpoint(tmp_path / "tiny", norm_stats=entries)
    predictor = Predictor.from_pretrained(folder, device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    found = predictor.predict([picture], "go", options=PredictOptions(chunk_size=6))
    assert np.max(found.action_bins) <= BINS
    processor = tiny_processor()
    shape = AnswerShape(action_dim=1, chunk_size=1, kind="trajectory", num_bins=BINS)
    grammar = build_grammar(shape, processor.encode_many, processor.eos_id)
    for number, allowed in ((BINS, True), (BINS + 1, False)):
        ids = processor.encode(" " + answer("trajectory", action_bins=[[number]], num_images=1))
        assert grammar.accepts([*ids, processor.eos_id]) == allowed


def test_the_export_states_the_bins_for_the_released_code(coarse: Path, tmp_path: Path) -> None:
    base = write_tiny_checkpoint(tmp_path / "base")
    entries = read_entries(coarse / schema.STATISTICS_FILE)
    (tmp_path / "out").mkdir()
    finish_folder(tmp_path / "out", base, read_config(base), entries, "float32")
    assert read_config(tmp_path / "out")["n_action_bins"] == BINS
    other = {"other": {**entries["debug/square"], "num_bins": 64}}
    with pytest.raises(UserError, match="debug/square: 32, other: 64"):
        finish_folder(tmp_path / "out", base, read_config(base), {**entries, **other}, "float32")


def test_data_and_checkpoint_of_different_bins_do_not_mix(coarse: Path, tmp_path: Path) -> None:
    fine = write_debug_dataset(tmp_path / "fine", episodes=2, size=56, name="debug/fine")
    config = resolve("debug", {"checkpoint": "c", "data": ["d"], "output_path": "s"})
    sources = opened(coarse, fine).sources
    fresh = write_tiny_checkpoint(tmp_path / "fresh")
    with pytest.raises(UserError, match="retokenize --action-bins"):
        merged(config, fresh, sources)
    assert merged(config, fresh, sources[:1])["debug/square"]["num_bins"] == BINS
    entries = read_entries(fine / schema.STATISTICS_FILE)
    trained = write_tiny_checkpoint(tmp_path / "trained", norm_stats=entries)
    with pytest.raises(UserError, match=r"32.*the checkpoint .*: 256"):
        merged(config, trained, sources[:1])


@pytest.mark.parametrize("codes", [129, 256])
def test_codes_without_a_token_are_refused(coarse: Path, codes: int) -> None:
    (source,) = opened(coarse).sources
    source.layout = replace(source.layout, codebook_size=codes)
    given = {"checkpoint": "c", "data": ["d"], "output_path": "s"}
    with pytest.raises(UserError, match=f"a codebook of {codes}"):
        FAMILY.check_source(source, resolve("debug", given))
    FAMILY.check_source(
        source, resolve("debug", {**given, "kind_reasoning": 0.0})
    )  # no depth is asked about


def test_bins_and_grids_without_a_token_are_refused(tmp_path: Path) -> None:
    many = write_debug_dataset(tmp_path / "many", episodes=2, size=56, num_bins=512)
    with pytest.raises(UserError, match="512 action bins have no tokens"):
        opened(many)
    (source,) = opened(write_debug_dataset(tmp_path / "d", episodes=2, size=56)).sources
    config = resolve("debug", {"checkpoint": "c", "data": ["d"], "output_path": "s"})
    for count in (200, 400):
        source.layout = replace(source.layout, depth_codes=count)
        with pytest.raises(UserError, match=f"{count} depth codes per frame"):
            FAMILY.check_source(source, config)


@pytest.mark.parametrize("wrong", [1, 0, -3, 2.5, "256", True, None, 10**9])
def test_a_statistics_file_with_senseless_bins_is_refused(coarse: Path, wrong: Any) -> None:
    entries = read_entries(coarse / schema.STATISTICS_FILE)
    entries["debug/square"]["num_bins"] = wrong
    with pytest.raises(UserError, match="num_bins"):
        DatasetStatistics.from_json(entries)
    with pytest.raises(UserError, match="num_bins"):
        ActionDecoder.from_norm_stats(entries, None)


def test_preprocess_and_retokenize_state_their_bins(
    molmoact: Any, make_output: Any, tmp_path: Path
) -> None:
    """The file beside the shards says 128 once the shards do, and nothing again at 256."""
    from molmoact_data.files.storage import Storage
    from pipelines.preprocess import state_bins

    out = make_output()
    before = (out / schema.STATISTICS_FILE).read_bytes()
    assert b"num_bins" not in before
    code, _, err = molmoact(
        "retokenize", out, "--action-bins", 128, "--output-path", tmp_path / "n"
    )
    assert code == 0, err
    assert Output.open(tmp_path / "n").statistics.num_bins == 128
    back = ("retokenize", tmp_path / "n", "--action-bins", 256, "--output-path", tmp_path / "b")
    assert molmoact(*back)[0] == 0
    first, last = (Output.open(p).statistics.sha256() for p in (out, tmp_path / "b"))
    assert first == last
    storage = Storage(str(out))
    assert state_bins(storage, 256) == json.loads(before)
    assert (out / schema.STATISTICS_FILE).read_bytes() == before
    ((_, entry),) = state_bins(storage, 64).items()
    assert entry["num_bins"] == 64
    assert state_bins(storage, 256) == json.loads(before)
