"""One frame for all our HTML pages: one file each, nothing from outside, light and dark, wide and narrow.

A page is a template beside the module that renders it. It extends `frame.html` by the block `main` and may import
from `pieces.html`. Whatever a template prints is escaped; only charts, which escape their own text, are `|safe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

PACKAGE = "molmoact_data.pages"


@dataclass(frozen=True)
class Card:
    """One of the numbers at the top of a page."""

    number: str
    label: str
    unit: str = ""
    """Printed small behind the number."""


@dataclass(frozen=True)
class Figure:
    """A picture in a gallery with its caption."""

    name: str
    address: str
    """`data:image/...;base64,...`; empty = no picture."""
    pill: str
    """A word or number in the corner of the caption."""
    verdict: Literal["good", "warn", "bad"]
    """Colour of the pill."""
    caption: str
    width: int | None = None
    """Pixels, so that the page does not jump while it loads; None = unknown."""
    height: int | None = None
    film: str = ""
    """Path of a film, relative to the page; empty = none."""


def render_page(
    package: str,
    template: str,
    *,
    kind: str,
    heading: str,
    facts: Mapping[str, object] | None = None,
    cards: Sequence[Card] = (),
    footer: str = "",
    **values: Any,
) -> str:
    """The text of the page `template` of `package`; equal values give equal text.

    `kind` says what sort of page it is ("Label report"), `heading` what it is about; `values` are what the block
    `main` of the template names, and a name that is missing raises `jinja2.UndefinedError`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(p, "") for p in (package, PACKAGE)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    style = resources.files(PACKAGE).joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        style=style, kind=kind, heading=heading, facts=facts, cards=cards, footer=footer, **values
    )


def plain(value: object) -> str:
    """A setting in words: `-` for nothing, yes and no, commas between the members of a list."""
    if value is None or value == ():
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def percent(share: float) -> str:
    """A share 0..1 in words; small ones keep a digit: 0.334 -> "33 %", 0.034 -> "3.4 %" (a no-break space)."""
    value = 100 * share
    digits = 0 if value >= 10 or value < 1e-9 else 1
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}%"
