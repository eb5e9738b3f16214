"""The board in Chromium: sort, search, filter, link, hover, themes, and nothing asked of the outside.

Run by `pytest -m browser`; skipped where playwright or Chromium is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from robustgen.benchmarks.board_page import browser_path, chromium
from robustgen.leaderboard.build import build_site
from robustgen.leaderboard.entries import load_entries

pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(browser_path() is None, reason="no Chromium")]

BOARD = "board-cifar10-linf-8-255.html"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site with what comes with robustgen."""
    out = tmp_path_factory.mktemp("site")
    build_site(out, load_entries())
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page that must not complain, nor ask for anything but files."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page, wrong = context.new_page(), []
    page.set_default_timeout(120_000)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
    yield page
    context.close()
    assert [] == wrong


def show_all(tab: Any) -> None:
    """Press the button at the foot of the table, where there is one."""
    tab.evaluate("document.querySelector('[data-more] button').click()")


def names(tab: Any) -> list[str]:
    """The entries that pass the filters, in their order."""
    show_all(tab)
    shown: list[str] = tab.evaluate(
        "[...document.querySelectorAll('table[data-board] tbody tr')].filter(r => !r.hidden).map(r => r.dataset.row)"
    )
    return shown


def column(tab: Any, place: int) -> list[float]:
    """The figures of a column, of the entries that pass the filters."""
    show_all(tab)
    values: list[float] = tab.evaluate(
        "k => [...document.querySelectorAll('table[data-board] tbody tr')].filter(r => !r.hidden)"
        ".map(r => Number(r.cells[k].dataset.v))", place
    )  # fmt: skip
    return values


def test_every_page_opens_quietly(tab: Any, site: Path) -> None:
    """Each page at phone and desk width, in light and dark: no message, no request, nothing wider than the screen."""
    for path in sorted(site.glob("*.html")):
        for width, scheme in ((390, "dark"), (1440, "light")):
            tab.set_viewport_size({"width": width, "height": 844})
            tab.emulate_media(color_scheme=scheme)
            tab.goto(path.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == width, path.name


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_accessible(browser: Any, site: Path, width: int, scheme: str) -> None:
    """axe-core finds no violation, on a page of each kind; it is put in, so that here the policy does not hold."""
    script = files(pytest.importorskip("axe_playwright_python")) / "axe.min.js"
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    kinds = {path.name.partition("-")[0]: path for path in sorted(site.glob("*.html"), reverse=True)}
    assert len(kinds) >= 4
    for path in kinds.values():
        page.goto(path.as_uri())
        page.evaluate(script.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        assert [] == [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found], path.name
    context.close()


def test_sort(tab: Any, site: Path) -> None:
    """A click on a column sorts, a second one turns round, the address keeps it, and the address alone restores it."""
    tab.goto((site / BOARD).as_uri())
    first = names(tab)
    tab.get_by_role("button", name="Clean").click()
    falling = column(tab, 2)
    assert falling == sorted(falling, reverse=True)
    assert "descending" == tab.get_attribute("th[data-sort=clean]", "aria-sort")
    tab.get_by_role("button", name="Clean").click()
    assert column(tab, 2) == falling[::-1]
    address = tab.url
    assert "sort=clean-up" in address
    shown = names(tab)
    assert first != shown
    tab.goto("about:blank")
    tab.goto(address)
    assert shown == names(tab)


def test_search_by_keyboard(tab: Any, site: Path) -> None:
    """/ goes to the search, words narrow the rows, arrows walk them, Escape brings all back."""
    tab.goto((site / BOARD).as_uri())
    tab.keyboard.press("/")
    tab.keyboard.type("gowal 70")
    shown = names(tab)
    assert shown
    assert all("Gowal" in name for name in shown)
    assert f"{len(shown)} of 99 entries" == tab.inner_text("[data-count]")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    assert shown[1] == tab.evaluate("document.activeElement.closest('tr').dataset.row")
    tab.keyboard.press("/")
    tab.keyboard.press("Escape")
    assert 99 == len(names(tab))


def test_filters_and_links(tab: Any, site: Path) -> None:
    """A box filters rows and dims points; a row's link marks it, adds to the address and is found again."""
    tab.goto((site / BOARD).as_uri())
    tab.get_by_label("weights available").check()
    assert 76 == len(names(tab))
    assert 23 == tab.locator("svg[data-plot] circle.off").count()
    tab.locator("tbody tr:not([hidden]) th > a").nth(4).click()
    marked = tab.get_attribute("tr.marked", "data-row")
    address = tab.url
    assert "only=listed" in address
    tab.goto("about:blank")
    tab.goto(address)
    assert marked == tab.get_attribute("tr.marked", "data-row")
    assert 76 == len(names(tab))
    tab.goto((site / f"{BOARD}#row=%3Cscript%3E&sort=nonsense-up&only=x").as_uri().replace("%23", "#"))
    assert 99 == len(names(tab))


def test_plot_tells_what_is_under_the_pointer(tab: Any, site: Path) -> None:
    """Near a point its name and figures appear, and its row is marked; away from all points nothing does."""
    tab.goto((site / BOARD).as_uri())
    point = tab.locator("svg[data-plot] circle[data-row='Zhang2020Towards']")
    point.hover()
    assert "Zhang2020Towards" in tab.inner_text("[data-tip]")
    assert "32.64 % [31.73, 33.57]" in tab.inner_text("[data-tip]")
    assert "Zhang2020Towards" == tab.get_attribute("tr.near", "data-row")
    tab.mouse.move(2, 2)
    assert tab.locator("[data-tip]").is_hidden()


def test_rows_come_as_the_page_is_scrolled(tab: Any, site: Path) -> None:
    """Twenty rows are laid out at first, all after scrolling to the end; a link to a later row shows that row."""
    laid_out = (
        "() => [...document.querySelectorAll('table[data-board] tbody tr')].filter(r => r.offsetHeight > 0).length"
    )
    tab.set_viewport_size({"width": 1440, "height": 400})
    tab.goto((site / "claims.html").as_uri())
    assert 20 == tab.evaluate(laid_out)
    tab.locator("[data-more]").scroll_into_view_if_needed()
    tab.wait_for_function(f"() => ({laid_out})() > 20")
    show_all(tab)
    assert len(names(tab)) == tab.evaluate(laid_out)
    tab.goto("about:blank")
    tab.goto((site / BOARD).as_uri() + "#row=Standard")
    assert tab.locator("tr[data-row=Standard]").is_visible()


def test_claims_of_one_board(tab: Any, site: Path) -> None:
    """The wall begins with the largest overclaim; over a point on CIFAR-10 in Linf there are 31."""
    tab.goto((site / "claims.html").as_uri())
    assert "Alfarra2020ClusTR" in names(tab)[0]
    tab.get_by_label("Board", exact=True).select_option("CIFAR-10, Linf 8/255")
    tab.get_by_label("over a point").check()
    assert 31 == len(names(tab))


def test_theme_is_chosen_by_hand(tab: Any, site: Path) -> None:
    """The button overrules the system, and the choice outlasts the page."""
    tab.goto((site / "index.html").as_uri())
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(paper)
    button = tab.locator("[data-theme-button]")
    button.click()
    assert light == tab.evaluate(paper)
    button.click()
    assert light != tab.evaluate(paper)
    tab.reload()
    assert light != tab.evaluate(paper)


def test_inline_scripts_do_not_run(browser: Any, site: Path, tmp_path: Path) -> None:
    """The policy holds on files: a script written into a page is refused, and ours still runs."""
    text = (site / BOARD).read_text(encoding="utf-8")
    for path in site.iterdir():
        if path.suffix in (".js", ".css", ".svg"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "page.html").write_text(text.replace("<h1>", "<script>window.hurt = 1</script><h1>"), encoding="utf-8")
    page = browser.new_page()
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("window.hurt === undefined")
    assert any("Content Security Policy" in text for text in said)
    assert page.locator("[data-controls]").is_visible()
    page.close()
