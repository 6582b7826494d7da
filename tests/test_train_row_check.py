"""A stored row through the real processor: the number of tokens that carry loss is that of its answer."""

from __future__ import annotations

from functools import partial

import pytest

from molmoact_data import schema
from molmoact_data.outputs.output import Output
from molmoact_data.text import prompts
from molmoact_data.validate import validate
from molmoact_train.debug.tiny import tiny_processor
from molmoact_train.families.molmoact.encoder import sample_check


@pytest.fixture(scope="module")
def processor_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    tiny_processor().save_pretrained(folder)
    return folder


def test_the_count_is_the_shortest_answer_with_its_end_of_text(make_output, processor_folder):
    from molmoact_train.families.molmoact.processor import MolmoActProcessor

    output = Output.open(make_output())
    row = list(output.rows())[3]
    processor = MolmoActProcessor.from_pretrained(processor_folder)
    labels = {
        "depth_codes": row[schema.DEPTH_CODES],
        "trace": row[schema.TRACE],
        "action_bins": row[schema.ACTION_BINS],
        "num_images": 2,
    }
    kinds = ("reasoning", "trajectory", "depth", "trace")
    answers = [prompts.answer(kind, **labels) for kind in kinds]
    expected = min(len(processor.encode(" " + text)) for text in answers) + 1

    found = sample_check(processor_folder, output)(row, [])
    assert found is not None
    assert found.loss == expected


def test_a_row_without_any_label_allows_no_sample(make_output, processor_folder):
    output = Output.open(make_output())
    row = list(output.rows())[3]
    for name in (schema.DEPTH_CODES, schema.TRACE, schema.ACTION_BINS):
        del row[name]
    assert sample_check(processor_folder, output)(row, []) is None


def test_validate_counts_a_sample_for_every_row(make_output, processor_folder):
    report = validate(str(make_output()), samples=partial(sample_check, processor_folder))
    assert report.to_json()["findings"] == {}
    assert report.samples == 33
