"""Our HTML pages as a person sees them: wide and narrow, light and dark, in Chromium.

    python scripts/screens.py out/demo/report.html out/demo/run/run.html --output-path screens
    python scripts/screens.py http://127.0.0.1:7860 --wait-for '#ask' --output-path screens

Each page becomes NAME-WIDTH-light.png and NAME-WIDTH-dark.png; --height cuts a long one off. What does not fit is
named, and then the exit code is 1: a page that is wider than its window, or something that leaves its card. Needs
playwright, and a Chromium: $CHROMIUM, or Debian's.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTHS = (1280, 390)
"""Pixels of a window on a desk, and of a phone."""
SCHEMES = ("light", "dark")
LONGEST_WAIT_MS = 60_000
WINDOW_HEIGHT = 900
PICTURES_ARE_THERE = """async () => {
  for (const picture of document.images) picture.loading = 'eager';
  await Promise.all([...document.images].map(picture => picture.decode().catch(() => null)));
}"""
DOES_NOT_FIT = """() => {
  const found = [], page = document.documentElement;
  if (page.scrollWidth > page.clientWidth)
    found.push(`the page is ${page.scrollWidth - page.clientWidth} px wider than its window`);
  for (const card of document.querySelectorAll('.card')) {
    const edge = card.getBoundingClientRect();
    for (const part of card.querySelectorAll('*')) {
      if (part.closest('.scroll')) continue;
      const box = part.getBoundingClientRect();
      if (box.width && (box.left < edge.left - 1 || box.right > edge.right + 1))
        found.push(`<${part.tagName.toLowerCase()}> "${part.textContent.trim().slice(0, 40)}" leaves its card`);
    }
  }
  return found;
}"""


@dataclass(frozen=True)
class Screen:
    """One picture of one page."""

    path: Path
    problems: tuple[str, ...]
    """What does not fit, in words."""


def address(page: str) -> str:
    """As a browser takes it."""
    return page if re.match(r"https?://", page) else Path(page).resolve().as_uri()


def name(page: str) -> str:
    """`out/demo/report.html` -> `demo-report`; an address -> its host."""
    if re.match(r"https?://", page):
        return re.sub(r"\W+", "-", page.partition("://")[2]).strip("-")
    path = Path(page).resolve()
    return f"{path.parent.name}-{path.stem}"


def screens(
    pages: Sequence[str], folder: Path, *, height: int | None = None, wait_for: str = "body"
) -> Iterator[Screen]:
    """Every page at every width in both schemes, when `wait_for` (CSS) is seen; the browser is closed at the end."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            for page in pages:
                for width in WIDTHS:
                    for scheme in SCHEMES:
                        path = folder / f"{name(page)}-{width}-{scheme}.png"
                        yield _screen(browser, page, path, width, scheme, height, wait_for)
        finally:
            browser.close()


def _screen(
    browser: Any,
    page: str,
    path: Path,
    width: int,
    scheme: str,
    height: int | None,
    wait_for: str,
) -> Screen:
    window = {"width": width, "height": height or WINDOW_HEIGHT}
    opened = browser.new_page(viewport=window, color_scheme=scheme)
    opened.set_default_timeout(LONGEST_WAIT_MS)
    try:
        opened.goto(address(page), wait_until="load")
        opened.locator(wait_for).first.wait_for(state="visible")
        opened.evaluate(PICTURES_ARE_THERE)
        problems = tuple(dict.fromkeys(opened.evaluate(DOES_NOT_FIT)))
        opened.screenshot(path=str(path), full_page=height is None)
    finally:
        opened.close()
    return Screen(path, problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", help="HTML files or addresses")
    parser.add_argument("--output-path", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--height", type=int, help="pixels; default: the whole page")
    parser.add_argument("--wait-for", default="body", help="CSS of what must be seen first")
    given = parser.parse_args()
    fits = True
    for screen in screens(
        given.pages, given.output_path, height=given.height, wait_for=given.wait_for
    ):
        print(screen.path)
        for problem in screen.problems:
            print(f"  {problem}", file=sys.stderr)
            fits = False
    return 0 if fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
