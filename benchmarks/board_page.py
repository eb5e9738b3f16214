"""How fast a page of the board is in Chromium: first paint and sort with 1,000 rows, opened from a file.

Beside seconds on the clock it measures seconds of processor time of the page's main thread, which other work on the
machine does not stretch. `python -m robustgen.benchmarks.board_page` needs the extra `browser`, and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustgen.benchmarks.harness import store
from robustgen.errors import SpecError
from robustgen.leaderboard.boards import Board, make_board, rank_rows
from robustgen.leaderboard.build import render_board, static_files
from robustgen.statistics import share_interval

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession

__all__ = ["browser_path", "chromium", "large_board", "measure", "write_page"]

ROWS = 1000
SORTED = ("robust", "entry", "date")  # by number, by text, by short text
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SCREEN: Any = {"width": 1440, "height": 900}  # playwright types it as a TypedDict of its own
_PATIENCE = 300_000  # ms
_SORT = """name => {
  const button = document.querySelector(`th[data-sort="${name}"] button`);
  const begun = performance.now();
  button.click();
  document.body.offsetHeight;
  return performance.now() - begun;
}"""
_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def browser_path() -> str | None:
    """Chromium of the system, or None."""
    return next((found for name in _NAMES if (found := shutil.which(name)) is not None), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser.

    Raises:
        SpecError: playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SpecError("pages are looked at with playwright; type pip install 'robustgen[browser]'.") from None
    path = browser_path()
    if path is None:
        raise SpecError(f"pages are looked at in Chromium; install one called {', '.join(_NAMES)}.")
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def large_board(rows: int) -> Board:
    """A board of so many entries: those of CIFAR-10 in Linf over and over, each time with slightly other figures."""
    board = make_board("cifar10", "linf:8/255", (), unlisted=True)
    made = []
    for k in range(rows):
        row = board.rows[k % len(board.rows)]
        robust = share_interval(max(0.0, row.robust.value - 0.0001 * (k // len(board.rows))), row.n)
        made.append(replace(row, name=f"{row.name}.{k}", shown=f"{row.shown}.{k}", robust=robust))
    return replace(board, rows=rank_rows(made))


def write_page(folder: Path, board: Board) -> Path:
    """One page with what it loads."""
    for name, content in static_files().items():
        (folder / name).write_bytes(content)
    page = folder / "board.html"
    page.write_text(render_board(board), encoding="utf-8")
    return page


def measure(browser: Browser, page: Path, repeats: int) -> dict[str, Any]:
    """Milliseconds of each load to its first paint and of each sort with its layout: on the clock, and of the CPU.

    In turn with the page one of a single word is loaded, whose first paint is what the browser itself takes.
    """
    loads: dict[str, list[float]] = {"paint_ms": [], "word_paint_ms": [], "cpu_until_loaded_ms": []}
    word = page.with_name("word.html")
    word.write_text("<!doctype html><title>word</title><p>word</p>", encoding="utf-8")
    sorts: dict[str, dict[str, list[float]]] = {name: {"ms": [], "cpu_ms": []} for name in SORTED}
    for _ in range(repeats):
        loads["word_paint_ms"].append(_first_paint(browser, word))
        context = browser.new_context(viewport=_SCREEN)
        tab = context.new_page()
        tab.set_default_timeout(_PATIENCE)
        session = context.new_cdp_session(tab)
        session.send("Performance.enable")
        tab.goto(page.as_uri())
        loads["cpu_until_loaded_ms"].append(_thread_ms(session))
        tab.wait_for_function(_PAINT)
        loads["paint_ms"].append(float(tab.evaluate(_PAINT)))
        for name in SORTED:
            before = _thread_ms(session)
            sorts[name]["ms"].append(float(tab.evaluate(_SORT, name)))
            sorts[name]["cpu_ms"].append(_thread_ms(session) - before)
        context.close()
    return {**loads, "sorts": sorts}


def _first_paint(browser: Browser, page: Path) -> float:
    context = browser.new_context(viewport=_SCREEN)
    tab = context.new_page()
    tab.set_default_timeout(_PATIENCE)
    tab.goto(page.as_uri())
    tab.wait_for_function(_PAINT)
    painted = float(tab.evaluate(_PAINT))
    context.close()
    return painted


def _thread_ms(session: CDPSession) -> float:
    """Processor time that the page's main thread has used."""
    said = session.send("Performance.getMetrics")["metrics"]
    return 1000 * float(next(entry["value"] for entry in said if entry["name"] == "ThreadTime"))


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = write_page(Path(folder), large_board(options.rows))
        found = measure(browser, page, options.repeats)
        size, version = page.stat().st_size, browser.version
    print("first paint, ms:", statistics.median(found["paint_ms"]), found["paint_ms"])
    print("of a single word, ms:", statistics.median(found["word_paint_ms"]), found["word_paint_ms"])
    for name, one in found["sorts"].items():
        print(f"sort by {name}, ms:", statistics.median(one["ms"]), one["ms"])
    what = "A board page opened from a file, fresh context each time; a sort ends when the new layout is done."
    result = {"what": what, "rows": options.rows, "bytes": size, "chromium": version, **found}
    print(store("board_page", result))


if __name__ == "__main__":
    main()
