"""Plans and results for people: tables on stdout, with numbers in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from molmoact_data.redaction import redact

Lines = str | Sequence[str]
NARROWEST = 60
"""Columns of a table where the terminal is narrower, or none."""


def show_facts(title: str, facts: Mapping[str, Lines | None]) -> None:
    """A title, then one row per fact; what is None or empty is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in facts.items():
        if lines:
            text = lines if isinstance(lines, str) else "\n".join(lines)
            table.add_row(f"  {name}", redact(text))
    _print(title, table)


def show_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A title and rows below their heads; columns of numbers stand at the right."""
    cells = [list(row) for row in rows]
    table = Table.grid(padding=(0, 2))
    for i, _ in enumerate(head):
        numbers = all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells)
        table.add_column(justify="right" if numbers else "left", overflow="fold")
    for row in ([[*head]] if any(head) else []) + cells:
        table.add_row(*(redact(("  " if i == 0 else "") + cell) for i, cell in enumerate(row)))
    _print(title, table)


def _print(title: str, table: Table) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if console.width < NARROWEST:
        console = Console(highlight=False, markup=False, emoji=False, width=NARROWEST)
    console.print(redact(title), soft_wrap=True)
    console.print(table)


def size(num_bytes: float) -> str:
    """Bytes in words: `99 MB`, `32.1 GB`; decimal, as disks are sold."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `1:23:20 h`."""
    whole = math.ceil(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{timedelta(seconds=whole)} h"
