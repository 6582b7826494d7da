"""All our HTML pages stand in one frame, and what others wrote is text there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from molmoact_data.pages.charts import line_chart
from molmoact_data.pages.page import Card, Figure, percent, render_page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("molmoact_data", "molmoact_train", "molmoact_robot", "pipelines", "vqvae")
FRAME, PIECES = "frame.html", "pieces.html"
HOSTILE = "<script>alert('1')</script> & \"quoted\""


def templates() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.html")]


def test_every_page_extends_the_frame_and_nothing_else_writes_one() -> None:
    pages = [path for path in templates() if path.name not in (FRAME, PIECES)]
    assert {path.name for path in pages} == {
        "report.html",
        "labels.html",
        "run.html",
        "eval.html",
        "web.html",
    }
    for path in pages:
        assert path.read_text().startswith('{% extends "frame.html" %}'), path
    sources = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    for path in [*pages, *sources]:
        assert not re.search(r"<!doctype|<style|<html", path.read_text().lower()), path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a template of its own that uses every piece."""
    folder = tmp_path / "a_package_with_pages"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "all.html").write_text(
        '{% extends "frame.html" %}{% from "pieces.html" import section, table, figures with context %}'
        "{% block main %}{{ section(word, word) }}{{ table([[word]], [word]) }}{{ figures(shown) }}"
        "{% endblock %}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_what_others_wrote_is_text_in_every_piece(package: str) -> None:
    figure = Figure(HOSTILE, HOSTILE, HOSTILE, "good", HOSTILE, film=HOSTILE)
    page = render_page(
        package, "all.html", kind=HOSTILE, heading=HOSTILE, facts={HOSTILE: HOSTILE},
        cards=[Card(HOSTILE, HOSTILE, HOSTILE)], footer=HOSTILE, word=HOSTILE, shown=[figure],
    )  # fmt: skip
    assert "<script" not in page.lower()
    assert 'alt="&lt;script&gt;' in page
    assert '"quoted"' not in page
    assert page.lower().count("&lt;script&gt;alert(") == 20  # every place where one stands
    assert "<script" not in line_chart(
        {HOSTILE: [(0, 1), (1, 2)]}, title=HOSTILE, y=HOSTILE, x=HOSTILE
    )


def test_a_value_that_a_page_lacks_is_an_error(package: str) -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="'shown' is undefined"):
        render_page(package, "all.html", kind="k", heading="h", word="w")


def test_the_frame_follows_dark_mode_and_narrow_screens(package: str) -> None:
    page = render_page(package, "all.html", kind="Kind", heading="What", word="w", shown=[])
    assert page.startswith("<!doctype html>")
    assert '<meta name="viewport" content="width=device-width' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "<title>What – kind</title>" in page
    assert not re.search(r"https?:|<link|@import|url\(", page)


@pytest.mark.browser
def test_what_does_not_fit_a_phone_is_told(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("playwright", reason="needs playwright")
    if not Path("/usr/bin/chromium").is_file():
        pytest.skip("no Chromium here (apt-get install chromium)")
    from scripts import screens

    monkeypatch.setattr(screens, "SCHEMES", ("light",))
    values = {"kind": "Kind", "heading": "What", "shown": []}
    for name, word in (("fits", "w"), ("wide", "w" * 900)):
        page = render_page(package, "all.html", word=word, **values)
        (tmp_path / f"{name}.html").write_text(page.replace("anywhere", "normal"))
    pages = [str(tmp_path / f"{name}.html") for name in ("fits", "wide")]
    found = {s.path.name: s.problems for s in screens.screens(pages, tmp_path / "s", height=300)}
    stem = tmp_path.name
    assert found[f"{stem}-fits-1280-light.png"] == found[f"{stem}-fits-390-light.png"] == ()
    assert "px wider than its window" in found[f"{stem}-wide-390-light.png"][0]
    assert (tmp_path / "s" / f"{stem}-wide-390-light.png").read_bytes()[:4] == b"\x89PNG"


def test_an_axis_of_logarithms_puts_doubling_at_equal_steps() -> None:
    chart = line_chart(
        {"a": [(2, 0), (4, 0.5), (8, 1)]}, title="t", y="px", x="K", log_x=True, y_top=1
    )
    path = re.search(r'polyline points="([^"]+)"', chart).group(1)
    x = [float(place.split(",")[0]) for place in path.split(" ")]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    assert re.findall(r'style="left:[\d.]+%">([\d.]+)<', chart) == ["2", "4", "8"]


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0"), (0.034, "3.4"), (0.0999, "10.0"), (0.334, "33"), (1, "100")]
)
def test_small_shares_keep_a_digit(share: float, words: str) -> None:
    assert percent(share) == f"{words}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("low", "high"), [(3e-5, 2.99e-4), (0.0, 3.82), (1.0, 123456.0), (-0.4, -0.000012)]
)
def test_numbers_of_an_axis_fit_beside_it(low: float, high: float) -> None:
    """A learning rate written out was cut off at the left edge; every number is still its own to two digits."""
    chart = line_chart({"a": [(0, low), (1, high)]}, title="t", y="y", x="x")
    shown = re.findall(r"<span>([^<]+)</span>", chart)[2::-1]
    assert max(map(len, shown)) <= 7
    expected = [low, (low + high) / 2, high]
    assert [float(text) for text in shown] == pytest.approx(expected, rel=0.05, abs=1e-12)
