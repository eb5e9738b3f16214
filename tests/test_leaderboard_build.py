"""The static site: what is in it, what is not, and what a stranger wrote in it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustgen.cli import _run
from robustgen.errors import SpecError
from robustgen.leaderboard import build
from robustgen.leaderboard.boards import Board, Row, make_board, rank_rows
from robustgen.leaderboard.build import POLICY, build_site, render_board
from robustgen.leaderboard.charts import WIDTH, bar_of, plot_of, top_of
from robustgen.leaderboard.entries import Entry, EntryCard, load_entries
from robustgen.leaderboard.parts import Accepted
from robustgen.leaderboard.pictures import Picture, amplification, pack_pixels, png_of
from robustgen.spec import RunSpec
from robustgen.statistics import Estimate, share_interval
from tests.helpers import ROOT

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}javascript:alert(3)"
OURS = {"board.js", "copy.js", "theme.js"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and ids, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, attribute: str) -> list[str]:
        """Every value of an attribute."""
        return [value for _, attrs in self.tags if (value := attrs.get(attribute)) is not None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site with what comes with robustgen, made by the command in a process of its own; and what that said."""
    out = tmp_path_factory.mktemp("site")
    code = f"""
import sys
from robustgen.cli import _run
assert 0 == _run(["leaderboard", "build", {str(out)!r}])
print("heavy:", sorted({{"torch", "diffusers", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return out, done.stdout


@pytest.fixture(scope="module")
def site(built: tuple[Path, str]) -> Path:
    """The folder of the site."""
    return built[0]


@pytest.fixture(scope="module")
def found(site: Path) -> dict[str, Page]:
    """Its pages, parsed."""
    return pages(site)


def pages(folder: Path) -> dict[str, Page]:
    """Every page, parsed."""
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html"))}


def assert_harmless(page: Page, name: str) -> None:
    """No script but ours, no inline handler or style, no address but our files and http."""
    for tag, attrs in page.tags:
        assert tag not in {"iframe", "object", "embed", "form", "base", "style"}, (name, tag)
        assert not [key for key in attrs if key.startswith("on") or key == "style"], (name, attrs)
        if tag == "script":
            assert attrs.get("src") in OURS, (name, attrs)
        if tag == "img":
            assert re.fullmatch(r"icon\.svg|witnesses/[\w.-]+\.png", attrs["src"] or ""), (name, attrs)
        for key in ("href", "src", "data"):
            if (value := attrs.get(key)) is not None:
                assert re.match(r"https?://|#|[\w%.-]+(/[\w%.-]+)?(#|$)", value), (name, value)
                assert not value.lower().startswith(("javascript:", "data:")), (name, value)


def test_site_is_whole_and_small(site: Path, found: dict[str, Page]) -> None:
    """A page a board and entry, no link into nowhere, all of it within 1.5 MB."""
    assert {"index.html", "claims.html", "flags.html", "board-cifar10-linf-8-255.html"} <= set(found)
    assert len(load_entries()) == len([name for name in found if name.startswith("entry-")])
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    for name, page in found.items():
        for link in page.all("href") + page.all("src"):
            assert link.startswith(("http", "#")) or link.partition("#")[0] in files, (name, link)
            target, _, anchor = link.partition("#")
            if target == "flags.html" and anchor:
                assert anchor in found["flags.html"].all("id")
    assert sum((site / name).stat().st_size for name in files) <= 1_500_000


def test_every_page_has_the_policy_and_keeps_it(found: dict[str, Page]) -> None:
    """The policy comes before anything it governs, and no page has what it forbids."""
    assert "unsafe" not in POLICY
    for name, page in found.items():
        tags = [tag for tag, _ in page.tags]
        (policy,) = (
            k for k, (_, attrs) in enumerate(page.tags) if attrs.get("http-equiv") == "Content-Security-Policy"
        )
        assert POLICY == page.tags[policy][1]["content"]
        assert policy < min(tags.index("link"), tags.index("script"))
        assert_harmless(page, name)


def test_pages_can_be_read_by_all(found: dict[str, Page]) -> None:
    """Language, one h1, a name for each image, control and column, a way past the header."""
    for name, page in found.items():
        tags = [tag for tag, _ in page.tags]
        assert ("html", {"lang": "en"}) in page.tags
        assert 1 == tags.count("h1"), name
        assert "#main" in page.all("href")
        for tag, attrs in page.tags:
            assert tag != "img" or "alt" in attrs
            assert tag != "th" or attrs.get("scope") in ("col", "row"), (name, attrs)
            assert tag != "svg" or attrs.get("aria-hidden") == "true" or attrs.get("aria-labelledby") == "plot-title"
        assert len(page.all("id")) == len(set(page.all("id"))), name
        assert tags.count("table") == tags.count("caption")


def hostile_row() -> Row:
    """A row whose every text is an attack."""
    own = make_board("cifar10", "l2:0.5", ()).rows[0]
    texts = dict.fromkeys(("name", "shown", "title", "architecture", "venue", "date"), HOSTILE)
    return replace(own, **texts, link="https://example.org/?a=1&b=\"'<>", flags=(HOSTILE,), extra={HOSTILE: 1.0})  # type: ignore[arg-type]


def test_injection_on_a_board() -> None:
    """Whatever is written into the fields of an entry is text, in the table, in the plot and in attributes."""
    board = Board(
        data=HOSTILE, threat=HOSTILE, images=HOSTILE, sources=(HOSTILE,), rows=rank_rows([hostile_row()])
    )  # fmt: skip
    page = Page(render_board(board))
    assert_harmless(page, "board")
    assert page.text.count(HOSTILE) >= 8
    assert HOSTILE in page.all("data-row")


def hostile_entry() -> Entry:
    """A card whose every free text is an attack; what the card's own checks refuse is put in behind their back."""
    entry = next(entry for entry in load_entries() if isinstance(entry.card, EntryCard) and entry.card.pictures)
    card = entry.card
    plain = {"seed": 0, "ids": "0", "schema": 1, "threat": "linf:0.1"}
    spec = RunSpec(**(dict.fromkeys(RunSpec.__dataclass_fields__, HOSTILE) | plain))
    texts = ("title", "architecture", "licence", "source", "date", "command", "identity", "record_sha256")
    claimed = {"value": 0.9, "n": 10, "protocol": HOSTILE, "source": HOSTILE}
    changes = {
        **dict.fromkeys(texts, HOSTILE), "spec": spec, "flags": (HOSTILE,), "notes": (HOSTILE,),
        "environment": {HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}}, "robust": "", "right": "0",
        "claimed": type("C", (), claimed)(),
        "accepted": Accepted(date="2026-01-01", archive_sha256=64 * "0", licence=HOSTILE, seed=1, told=(HOSTILE,)),
        "pictures": tuple(replace(p, label=HOSTILE, prediction=HOSTILE) for p in card.pictures),
    }  # fmt: skip
    made = object.__new__(type(card))
    for name in type(card).__dataclass_fields__:
        object.__setattr__(made, name, changes.get(name, getattr(card, name)))
    attacks = [{"name": HOSTILE, "broken": 1, "forwards": 1, "backwards": 1}]
    return Entry(made, {**entry.record, "attacks": attacks}, b"{}")


def test_injection_in_an_entry(tmp_path: Path) -> None:
    """The same for everything that a card or a record holds, on its own page, the index, board and wall of claims."""
    build_site(tmp_path, [hostile_entry()])
    found = pages(tmp_path)
    for name, page in found.items():
        assert_harmless(page, name)
    (own,) = (page for name, page in found.items() if name.startswith("entry-"))
    assert own.text.count(HOSTILE) >= 20
    assert HOSTILE in found["index.html"].text
    assert HOSTILE in found["claims.html"].text
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in tmp_path.rglob("*"))


def test_scripts_write_text_never_markup() -> None:
    """What scripts put on the page they put there as text."""
    for name in OURS:
        code = (ROOT / "leaderboard" / "static" / name).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|fetch\(", code)


def test_style_loads_nothing() -> None:
    """The style names no address, and its colours tell text from paper: 4.5 to 1 by WCAG in both themes."""
    css = (ROOT / "leaderboard" / "static" / "style.css").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", css)
    held = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", css)
    for theme in (1, 2):
        colour = {row[0]: row[theme] for row in held}
        for text in ("ink", "soft", "theirs", "doubt"):
            assert min(contrast(colour[text], colour[under]) for under in ("paper", "sheet")) >= 4.5, (text, theme)
        assert contrast(colour["doubt"], colour["doubt-sheet"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """Of two colours #rrggbb; source: WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_plot_stands_where_the_figures_are() -> None:
    """Points lie inside the frame, in the order of their figures; whiskers hold their points; ends of bars do too."""
    rows = make_board("imagenet", "linf:4/255", ()).rows
    plot, top = plot_of(rows), top_of(rows)
    for point in plot.points:
        assert plot.left <= point.x <= plot.right
        assert plot.top <= point.high <= point.y <= point.low <= plot.bottom
    ys = [point.y for point in plot.points]
    assert ys == sorted(ys)  # rows fall, and SVG counts downwards
    first = rows[0]
    steps = {float(tick.text): tick.at for tick in plot.y_ticks}
    (low, y_low), (high, y_high) = min(steps.items()), max(steps.items())
    expected = y_low + (100 * first.robust.value - low) / (high - low) * (y_high - y_low)
    assert abs(plot.points[0].y - expected) < 0.06
    assert 0.7 == top
    assert WIDTH == bar_of(Estimate(0.7, 0.6, 0.8), top).high


def test_pictures_show_the_difference() -> None:
    """Clean, adversarial and difference side by side: grey where nothing changed, amplified elsewhere."""
    clean = np.full((1, 4, 4), 100, np.uint8)
    adversarial = clean.copy()
    adversarial[0, 1, 2] = 120
    packed = [pack_pixels(image / np.float32(255)) for image in (clean, adversarial)]
    picture = Picture(id=3, label="cat", prediction="dog", shape=(1, 4, 4), clean=packed[0], adversarial=packed[1])
    assert 6 == amplification([picture])
    sheet = np.asarray(Image.open(io.BytesIO(png_of(picture, 6))))
    assert (4, 16) == sheet.shape
    assert (sheet[:, :4] == 100).all()
    assert 120 == sheet[1, 6 + 2]
    difference = sheet[:, 12:]
    assert 128 + 6 * 20 == difference[1, 2]
    assert 15 == (difference == 128).sum()


def test_pages_say_what_the_figures_are(found: dict[str, Page]) -> None:
    """A row of the README, with interval and open ranks, and the figures of an entry of ours."""
    text = re.sub(r"\s+", " ", found["board-cifar10-l2-0-5.html"].text)
    assert "84.33" in text
    assert "83.60–85.03" in text
    card = next(entry.card for entry in load_entries() if isinstance(entry.card, EntryCard))
    entry = found[f"entry-{card.name}.html"].text
    assert f"{100 * card.robust_accuracy.value:.2f}" in entry
    assert card.command in entry
    assert card.record_sha256 in entry
    interval = share_interval(card.robust_accuracy.value, card.n)
    assert f"{100 * interval.low:.2f}–{100 * interval.high:.2f}" in entry


def test_two_boards_never_share_a_file() -> None:
    """Names that differ only in signs that files cannot have get numbers."""
    boards = [replace(make_board("cifar10", "l2:0.5", ()), data=name) for name in ("a:b", "a-b", "a/b")]
    assert 3 == len(build._file_names(boards))


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in the way, and a missing jinja2, in a sentence."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert 2 == _run(["leaderboard", "build", str(tmp_path / "file")])
    assert "is a file; name a folder" in capsys.readouterr().err


def test_jinja2_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra the command says what to install, and writes nothing."""
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    build._templates.cache_clear()
    with pytest.raises(SpecError, match=r"pip install 'robustgen\[report\]'"):
        build_site(tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_build_needs_no_torch(built: tuple[Path, str]) -> None:
    """The site is made without torch, and the command says where it begins."""
    first, heavy = built[1].strip().splitlines()
    assert first.startswith(f"{built[0] / 'index.html'}: ")
    assert "heavy: []" == heavy
