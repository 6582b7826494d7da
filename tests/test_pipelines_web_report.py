"""The report of a general set: its rows, what is left out and why, counts that add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

from made_web import PictureServer, picture, write_everything

from molmoact_data import schema
from molmoact_data.text.annotations import Annotation
from molmoact_data.web.examples import Picture, WebExample
from molmoact_data.web.measures import WebMeasures, measure, merged, power_of_two
from molmoact_data.web.pictures import FetchConfig, Reason
from molmoact_data.web.rows import MANIFEST_FILE, web_row
from pipelines.web.config import WebConfig
from pipelines.web.page import EXAMPLES, REASONS, render_web_report
from pipelines.web.run import preprocess_web


def test_the_report_shows_rows_what_is_left_out_and_the_hosts(
    tmp_path: Path,
) -> None:
    made = WebConfig("pixmo_points_train", str(tmp_path / "raw"), str(tmp_path / "out"), threads=2)
    with PictureServer() as server:
        write_everything(tmp_path / "raw", server)
        del server.pictures["/p1.png"]
        preprocess_web(replace(made, fetch=FetchConfig(private_hosts=(server.host,), tries=2)))
    page = (Path(made.output_path) / schema.REPORT_FILE).read_text()
    assert "link_dead" in page
    assert REASONS["link_dead"] in page
    assert "127.0.0.1" in page
    manifest = json.loads((Path(made.output_path) / MANIFEST_FILE).read_text())
    assert page.count("data:image/jpeg") == min(EXAMPLES, manifest["rows"])
    assert page == render_web_report(Path(made.output_path), manifest)


def test_every_reject_of_a_picture_has_words_in_report_and_docs() -> None:
    assert set(REASONS) == set(get_args(Reason))
    told = (Path(__file__).resolve().parents[1] / "docs/pretraining.md").read_text()
    assert all(f"`{reason}`" in told for reason in REASONS)


def test_measures_count_and_add_up() -> None:
    example = WebExample(
        "k", Picture(file="a.png"), (Annotation("vqa", question="Which?", answers=("abcde",)),)
    )
    row = web_row("okvqa", example, picture((40, 30)), (40, 30))
    found = measure([row, row])
    assert found.to_json() == {
        "styles": {"vqa": 2},
        "formats": {"PNG": 2},
        "sides_px": {"64": 2},
        "answer_characters": {"8": 2},
    }
    both = merged([found, WebMeasures.from_json(found.to_json())])
    assert both.styles == {"vqa": 4}
    assert found.styles == {"vqa": 2}
    assert [power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 256, 257)] == [1, 1, 2, 4, 4, 8, 256, 512]
