"""General sets: layouts, wording, polite fetching, shards that survive a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_commands import Molmoact
from made_web import PictureServer, picture, sha, table, write_everything
from PIL import Image

from molmoact_data.errors import LimitExceeded, UserError
from molmoact_data.text import templates
from molmoact_data.text.annotations import Annotation, InlinePoints, load, render
from molmoact_data.web.catalogue import GROUP_RATES, WEB_SETS, chosen
from molmoact_data.web.examples import Picture
from molmoact_data.web.pictures import FetchConfig, PictureFetcher, PictureRejected
from molmoact_data.web.reading import read_picture
from pipelines.web.config import WebConfig
from pipelines.web.run import SECONDS_PER_PICTURE, plan_web, preprocess_web

# (examples, style) of every set as `made_web` writes it.
EXPECTED = {
    "pixmo_ask_model_anything": (3, "user_qa"),
    "pixmo_cap": (3, "long_caption"),
    "pixmo_cap_qa": (3, "synthetic_qa"),
    "pixmo_pointing_explanations": (3, "point_qa"),
    "coco_2014_vqa_multi": (1, "vqa2"),
    "text_vqa": (3, "text_vqa"),
    "okvqa": (3, "okvqa"),
    "chart_qa_weighted": (4, "chart_qa"),
    "doc_qa": (3, "doc_qa"),
    "info_qa": (1, "info_qa"),
    "ai2_diagram_v2_mix_transparent": (None, None),
    "a_okvqa_mc": (1, "a_okvqa_mc"),
    "a_okvqa_da": (1, "a_okvqa_da"),
    "android_control": (2, "android_control"),
    "science_qa_img": (2, "science_qa"),
    "tabwmp_da": (1, "tabwmp_da"),
    "st_qa": (2, "st_qa"),
    "tally_qa": (1, "tally_qa"),
    "dv_qa": (1, "dv_qa"),
    "figure_qa": (1, "figure_qa"),
    "plot_qa": (1, "plot_qa"),
    "pixmo_points_train": (6, None),
    "pixmo_count_train": (6, None),
    "pixmo_points_high_freq_train": (6, None),
}


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with PictureServer() as running:
        yield running


@pytest.fixture
def raw(tmp_path: Path, server: PictureServer) -> Path:
    root = tmp_path / "raw"
    write_everything(root, server)
    return root


def config(name: str, raw: Path, server: PictureServer, **changes: object) -> WebConfig:
    fetch = FetchConfig(private_hosts=(server.host,), max_bytes=100_000, tries=2)
    base = WebConfig(name, str(raw), str(raw.parent / "out" / name), fetch=fetch, threads=2)
    return replace(base, **changes)  # type: ignore[arg-type]


def rows(output: str) -> list[dict[str, object]]:
    return [
        row
        for path in sorted(Path(output).glob("data/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def test_the_catalogue_is_the_published_mixture() -> None:
    assert list(EXPECTED) == list(WEB_SETS)
    assert sum(GROUP_RATES.values()) == pytest.approx(0.05 * 0.9)  # lvis has the last tenth
    caps = {name: entry.cap for name, entry in WEB_SETS.items() if entry.cap}
    assert caps == {"pixmo_cap": 50_000, "dv_qa": 10_000, "figure_qa": 10_000, "plot_qa": 20_000}
    assert [s.name for s in chosen("AOkVqa")] == ["a_okvqa_mc", "a_okvqa_da"]
    assert len(chosen("pixmo")) == 7


@pytest.mark.parametrize(
    "name", [name for name in EXPECTED if name != "ai2_diagram_v2_mix_transparent"]
)
def test_a_set_in_its_authors_layout_becomes_rows(
    name: str, raw: Path, server: PictureServer
) -> None:
    made = config(name, raw, server)
    result = preprocess_web(made)
    count, style = EXPECTED[name]
    assert (result.rows, result.rejects) == (count, {})
    for row in rows(made.output_path):
        told = load(str(row["annotations"]))
        assert style is None or {a.style for a in told} == {style}
        Image.open(io.BytesIO(row["image"]["bytes"])).load()  # type: ignore[index]
        assert len(row["conversations"]["value"]) >= 2 * len(told)  # type: ignore[index]


def test_the_command_plans_and_runs(
    raw: Path, server: PictureServer, molmoact: Molmoact, tmp_path: Path
) -> None:
    where = ["--input-path", raw, "--output-path", tmp_path / "dv", "--private-hosts", server.host]
    code, out, err = molmoact("preprocess-web", "dv_qa", *where, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["examples"] == 1
    assert not (tmp_path / "dv").exists()
    code, out, err = molmoact("preprocess-web", "dv_qa", *where, "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 1


def test_a_plan_reckons_with_the_busiest_host(raw: Path, server: PictureServer) -> None:
    made = config("pixmo_cap", raw, server, threads=16)
    plan = plan_web(made)
    assert (plan["addresses"], plan["busiest_host"]) == (3, "127.0.0.1")
    # Three pictures of one host, four at a time at most: the host decides, not the threads.
    assert plan["hours"] == pytest.approx(SECONDS_PER_PICTURE * 3 / made.fetch.per_host / 3600)
    slow = plan_web(config("pixmo_cap", raw, server, threads=1))
    assert slow["hours"] == pytest.approx(SECONDS_PER_PICTURE * 3 / 3600)


def test_ai2d_draws_its_letters_twice_and_holds_pictures_out(
    raw: Path, server: PictureServer
) -> None:
    made = config("ai2_diagram_v2_mix_transparent", raw, server)
    by_key = {row["key"]: row for row in rows(made.output_path)} if preprocess_web(made) else {}
    held_out = config(
        "ai2_diagram_v2_mix_transparent",
        raw,
        server,
        split="validation",
        output_path=str(raw / "v"),
    )
    preprocess_web(held_out)
    numbers = {str(row["key"]).partition(".")[0] for row in rows(held_out.output_path)}
    trained = {str(key).partition(".")[0] for key in by_key}
    assert len(numbers) == 384
    assert len(trained) == 1
    assert not trained & numbers
    assert "0" not in trained | numbers
    for row in rows(held_out.output_path):
        (annotation,) = load(str(row["annotations"]))
        lettered = annotation.style == "ai2_diagram_no_letter"
        assert annotation.options == (("A", "B") if lettered else ("fox", "hen"))
        image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))  # type: ignore[index]
        opaque = (image == (25, 249, 255)).all(-1).any()
        assert opaque == (lettered and not str(row["key"]).endswith("_transparent"))


def test_charts_of_people_and_of_a_program_weigh_alike(raw: Path, server: PictureServer) -> None:
    made = config("chart_qa_weighted", raw, server)
    preprocess_web(made)
    human, machine = 2 * 20901 / 28299, 2 * 7398 / 28299
    assert [row["weight"] for row in rows(made.output_path)] == pytest.approx([human, machine] * 2)


def test_pixels_become_percent_and_points_go_from_left_to_right(
    raw: Path, server: PictureServer
) -> None:
    made = config("pixmo_count_train", raw, server)
    preprocess_web(made)
    answers = {row["conversations"]["value"][1] for row in rows(made.output_path)}  # type: ignore[index]
    point = '<point x="50.0" y="50.0" alt="squares">squares</point>'
    assert answers == {point, f"Counting the {point} shows a total of 1."}
    made = config("pixmo_points_train", raw, server)
    preprocess_web(made)
    points = '<points x1="20.3" y1="30.0" x2="80.0" y2="10.0" alt="square">square</points>'
    answers = {row["conversations"]["value"][1] for row in rows(made.output_path)}  # type: ignore[index]
    assert answers == {points, f"Counting the {points} shows a total of 2."}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.mark.parametrize(
    ("annotation", "question", "answer"),
    [
        (Annotation("vqa2", "is it?", ("no", "yes", "yes")), "vqa2: is it?", "yes"),
        (
            Annotation("a_okvqa_mc", "which?", options=("cat", "dog"), answer_index=1),
            "a_okvqa_mc: which?\nA: cat\nB: dog\n",
            "B",
        ),
        (
            Annotation(
                "ai2_diagram_no_letter",
                "which?",
                options=("A", "B"),
                answer_index=0,
                lettered=False,
            ),
            "ai2_diagram_no_letter: which?\nA\nB\n",
            "A",
        ),
        (Annotation("android_control", "high_level: x", ("Wait",)), "high_level: x", "Wait"),
        (
            Annotation(
                "point_qa",
                "where?",
                ("At <|POINT|>.",),
                inline_points=(InlinePoints(((1.0, 2.0),), "it", "a"),),
            ),
            "point_qa: where?",
            'At <point x="1.0" y="2.0" alt="a">it</point>.',
        ),
    ],
)
def test_wording_of_academic_styles(annotation: Annotation, question: str, answer: str) -> None:
    assert render(annotation, rng()) == [question, answer]
    assert load(json.dumps([annotation.to_json()])) == (annotation,)


def test_demo_styles_carry_their_prefix_one_time_in_ten() -> None:
    pointing = Annotation("pointing", label="Red Cube", points=())
    asked = [render(pointing, rng(seed)) for seed in range(2000)]
    prefixed = sum(question.startswith("pointing: ") for question, _ in asked)
    assert 140 < prefixed < 260
    assert {answer for _, answer in asked} == {"There are none."}
    wordings = {template.replace("{label}", "red cube") for template in templates.POINTING}
    assert {question.removeprefix("pointing: ") for question, _ in asked} == wordings


def test_how_many_is_asked_without_points() -> None:
    turns = render(
        Annotation("synthetic_qa", turns=("How many cats?", "Two.", "Why?", "So.")), rng()
    )
    first = turns[0].removeprefix("synthetic_qa: ")
    assert first.removesuffix("How many cats?") in templates.NO_POINTS
    assert turns[1:] == ["Two.", "Why?", "So."]


def fetcher(
    tmp_path: Path, server: PictureServer, waits: list[float] | None = None
) -> PictureFetcher:
    fetch = FetchConfig(private_hosts=(server.host,), max_bytes=100_000, tries=2)
    return PictureFetcher(
        tmp_path / "kept", fetch, sleep=(waits if waits is not None else []).append
    )


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/gone.png", "link_dead"),
        ("/text.png", "not_a_picture"),
        ("/huge.png", "too_large"),
        ("/always-busy.png", "link_busy"),
        ("/to-private.png", "link_refused"),
        ("/to-file.png", "link_refused"),
        ("/round.png", "link_dead"),
        ("/half.png", "not_a_picture"),
    ],
)
def test_a_link_that_gives_no_picture_is_a_verdict_and_is_asked_once(
    path: str, reason: str, tmp_path: Path, server: PictureServer
) -> None:
    server.redirects = {
        "/to-private.png": "http://127.0.0.2:1/secret.png",
        "/to-file.png": "file:///etc/passwd",
        "/round.png": "/round.png",
    }
    server.pictures["/half.png"] = picture((300, 300))[:150]
    for _ in range(2):
        with pytest.raises(PictureRejected) as rejected:
            fetcher(tmp_path, server).fetch(server.url + path)
        assert rejected.value.reason == reason
    once = {"/always-busy.png": 2, "/round.png": 6}.get(path, 1)
    assert server.asked[path] == once
    assert fetcher(tmp_path, server).forget_verdicts() == 1


def test_a_private_address_is_never_asked(tmp_path: Path, server: PictureServer) -> None:
    for url in (
        f"http://{server.host}/p.png",
        "http://localhost:1/p.png",
        "http://[::1]/p.png",
        "http://10.0.0.1/p.png",
    ):
        with pytest.raises(PictureRejected, match="link_refused"):
            PictureFetcher(tmp_path / "kept", FetchConfig()).fetch(url)
    assert not server.asked


def test_a_busy_host_is_asked_again_after_what_it_says(
    tmp_path: Path, server: PictureServer
) -> None:
    waits: list[float] = []
    content = fetcher(tmp_path, server, waits).fetch(server.url + "/busy-once.png")
    assert content == picture(colour="blue")
    assert 7 <= waits[0] <= 7 * 1.25


def test_another_content_is_another_picture(tmp_path: Path, server: PictureServer) -> None:
    server.pictures["/a.png"] = picture()
    assert fetcher(tmp_path, server).fetch(server.url + "/a.png", sha(picture())) == picture()
    with pytest.raises(PictureRejected, match="other_content"):
        fetcher(tmp_path, server).fetch(server.url + "/a.png", "0" * 64)


def test_a_file_outside_the_set_is_refused(tmp_path: Path, server: PictureServer) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(PictureRejected, match="link_refused"):
            read_picture(tmp_path / "set", Picture(file=name), fetcher(tmp_path, server))


def test_dead_links_are_rejects_with_reasons_and_hosts(raw: Path, server: PictureServer) -> None:
    del server.pictures["/p1.png"]
    made = config("pixmo_cap", raw, server)
    assert preprocess_web(made).rejects == {"link_dead": 1}
    (reject,) = (
        json.loads(line)
        for line in Path(made.output_path, "rejects.jsonl").read_text().splitlines()
    )
    assert reject["url"] == server.url + "/p1.png"
    manifest = json.loads(Path(made.output_path, "web_manifest.json").read_text())
    assert manifest["dead_links_by_host"] == {"127.0.0.1": 1}
    del server.pictures["/p0.png"], server.pictures["/p2.png"]
    with pytest.raises(LimitExceeded, match="3 of 3 examples"):
        preprocess_web(
            config(
                "pixmo_cap",
                raw,
                server,
                input_path=str(_copy(raw)),
                output_path=str(raw / "all-dead"),
            )
        )


def _copy(raw: Path) -> Path:
    """The same raw files without what was fetched."""
    other = raw.parent / "other"
    table(
        other,
        "pixmo-cap/data/train-00000-of-00001.parquet",
        pq.read_table(next(raw.glob("pixmo-cap/data/*"))).to_pylist(),
    )
    return other


def test_a_killed_run_goes_on_with_the_same_bytes_and_fetches_nothing_twice(
    raw: Path, server: PictureServer
) -> None:
    whole = config("pixmo_points_train", raw, server, shard_rows=2)
    preprocess_web(whole)
    expected = {p.name: sha(p.read_bytes()) for p in Path(whole.output_path).glob("data/*")}
    assert len(expected) == 3
    server.asked.clear()
    other = _points_copy(raw)
    killed = replace(whole, input_path=str(other), output_path=str(raw / "killed"))
    code = (
        "import os, signal, pipelines.web.run as w, pipelines.web.config as c\n"
        "from molmoact_data.web.pictures import FetchConfig\n"
        "build, seen = w.build_shard, []\n"
        "def dying(*arguments):\n"
        "    if seen: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    seen.append(build(*arguments))\n"
        "w.build_shard = dying\n"
        f"w.preprocess_web(c.{killed!r})".replace(
            "fetch=FetchConfig", "fetch=c.FetchConfig"
        ).replace("runner=RunnerConfig", "runner=c.RunnerConfig")
    )
    died = subprocess.run(
        [sys.executable, "-c", code], check=False, env=os.environ, cwd=Path(__file__).parent.parent
    )
    assert died.returncode == -signal.SIGKILL
    result = preprocess_web(replace(killed, resume=True))
    assert result.shards_built == 2
    assert {
        p.name: sha(p.read_bytes()) for p in Path(killed.output_path).glob("data/*")
    } == expected
    assert set(server.asked.values()) == {1}
    shard = next(Path(killed.output_path).glob("data/*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert preprocess_web(replace(killed, resume=True)).shards_built == 1
    assert sha(shard.read_bytes()) == expected[shard.name]


def _points_copy(raw: Path) -> Path:
    other = raw.parent / "points"
    source = next(raw.glob("pixmo-points/data/*"))
    table(
        other, "pixmo-points/data/train-00000-of-00001.parquet", pq.read_table(source).to_pylist()
    )
    return other


def test_mistakes_are_one_line(raw: Path, server: PictureServer) -> None:
    with pytest.raises(UserError, match="pixmo_cap"):
        preprocess_web(config("pixmo_kap", raw, server))
    made = config("dv_qa", raw, server)
    preprocess_web(made)
    with pytest.raises(UserError, match="exists already: --resume"):
        preprocess_web(made)
    with pytest.raises(UserError, match="other settings"):
        preprocess_web(replace(made, resume=True, shard_rows=7))
    (raw / "plot_qa" / "train" / "qa_pairs_V2.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        preprocess_web(config("plot_qa", raw, server))
    (raw / "android_control" / "android_control-00000-of-00020").write_bytes(b"\x10" * 40)
    with pytest.raises(UserError, match="is damaged"):
        preprocess_web(config("android_control", raw, server))
