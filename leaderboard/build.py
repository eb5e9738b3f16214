"""The board as a static site: files that open without a server, hold everything they show, and run no inline script."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from robustgen import __version__
from robustgen.durable import disk_errors
from robustgen.errors import SpecError
from robustgen.flags import FLAGS
from robustgen.leaderboard.boards import Board, Row, board_names, make_board
from robustgen.leaderboard.certified import CertifiedCard
from robustgen.leaderboard.charts import WIDTH, bar_of, curves_of, plot_of, top_of
from robustgen.leaderboard.claims import Claim, board_claims, over_a_point
from robustgen.leaderboard.entries import Entry, EntryCard, attacks_of
from robustgen.leaderboard.marks import BOARD_FLAGS, meaning
from robustgen.leaderboard.pictures import amplification, png_of
from robustgen.leaderboard.published import load_published
from robustgen.leaderboard.table import points
from robustgen.statistics import Estimate

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["POLICY", "build_site", "render_board", "static_files"]

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
_HERE = Path(__file__).resolve().parent
_DATA = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet", "fashion-mnist": "Fashion-MNIST",
    "fmnist-test-1k": "Fashion-MNIST, 1,000 images",
}  # fmt: skip
_NORMS = {
    "linf": "Linf", "l2": "L2", "l1": "L1", "corruptions": "common corruptions", "certified-l2": "certified within L2",
    "certified-l1": "certified within L1",
}  # fmt: skip
_STEP = 20  # rows of a table that are laid out before it is scrolled
_PAGES = (("index.html", "Boards"), ("claims.html", "Claims"), ("flags.html", "Flags"))


def build_site(out: Path, entries: Sequence[Entry]) -> list[Path]:
    """Write all pages into a folder; files of an older build are replaced, others left alone.

    Args:
        out: made where it is missing.
        entries: our own; published figures come with robustgen.

    Returns:
        The files written.

    Raises:
        SpecError: jinja2 is missing, or `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise SpecError(f"{out} is a file; name a folder.")
    files = _site(entries)
    with disk_errors(out):
        for name, content in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return [out / name for name in files]


def static_files() -> dict[str, bytes]:
    """Style, scripts and icon, by name."""
    return {path.name: path.read_bytes() for path in sorted((_HERE / "static").iterdir()) if path.is_file()}


def render_board(board: Board) -> str:
    """The page of one board."""
    top = top_of(board.rows)
    rows = [_shown(row, top) for row in board.rows]
    filters = [("listed", "weights available"), ("own", "ours"), ("no-extra", "no extra data"), ("no-flag", "no flags")]
    counts = Counter(word for row in rows for word in row["has"].split())
    curves = [(row.shown, row.curve) for row in board.rows if row.curve]
    return _render(
        "board.html", here="", board=board, title=_title(board), rows=rows, top=top, plot=plot_of(board.rows),
        curves=curves_of(curves) if curves else None,
        filters=[(name, text) for name, text in filters if 0 < counts[name] < len(rows)],
        extra=list(dict.fromkeys(name for row in board.rows for name in row.extra)),
        claims=any(row.claimed is not None for row in board.rows),
        queries=any(row.queries is not None for row in board.rows),
        again=f"robustgen leaderboard table --data {board.data} --threat {board.threat} --all",
    )  # fmt: skip


def _site(entries: Sequence[Entry]) -> dict[str, bytes]:
    """Every file by its name in the folder."""
    boards = [make_board(data, threat, entries, unlisted=True) for data, threat in board_names(entries)]
    named = _file_names(boards)
    pages = {"index.html": _index(named), "claims.html": _claims(named), "flags.html": _flags()}
    pages |= {file: render_board(board) for file, board in named.items()}
    content = static_files() | {name: text.encode() for name, text in pages.items()}
    where = {row.name: (file, board) for file, board in named.items() for row in board.rows if row.origin == "ours"}
    for entry in entries:
        file, board = where[entry.card.name]
        pictures = _witnesses(entry)
        content |= {shown["file"]: shown.pop("png") for shown in pictures["shown"]} if pictures else {}
        content[_entry_file(entry.card.name)] = _entry(entry, file, board, pictures).encode()
        content[f"records/{entry.card.name}.json"] = entry.content
    return content


def _index(named: Mapping[str, Board]) -> str:
    shown = []
    for file, board in named.items():
        norm, _, eps = board.threat.partition(":")
        strip = [{"x": round(200 * row.robust.value, 1), "own": row.origin == "ours"} for row in reversed(board.rows)]
        shown.append({
            "file": file, "data": _DATA.get(board.data, board.data), "threat": f"{_NORMS.get(norm, norm)} {eps}",
            "best": board.rows[0], "count": len(board.rows), "strip": strip,
            "own": sum(row.origin == "ours" for row in board.rows),
        })  # fmt: skip
    claims = [claim for board in named.values() for claim in board_claims(board) if claim.origin == "published"]
    return _render("index.html", here="index.html", boards=shown, over=over_a_point(claims), claims=len(claims))


def _claims(named: Mapping[str, Board]) -> str:
    found = [(claim, file, _title(board)) for file, board in named.items() for claim in board_claims(board)]
    found.sort(key=lambda one: (-one[0].overclaim, one[2], one[0].name))
    shown = [_claim(claim, file, title) for claim, file, title in found]
    filters = [("over", "over a point"), *([("ours", "ours")] if any(c["origin"] == "ours" for c in shown) else [])]
    over = over_a_point([claim for claim, _, _ in found])
    return _render(
        "claims.html", here="claims.html", claims=shown, over=over, filters=filters,
        picks=[(file.removesuffix(".html"), _title(board)) for file, board in named.items() if board_claims(board)],
    )  # fmt: skip


def _claim(claim: Claim, file: str, title: str) -> dict[str, Any]:
    over = over_a_point([claim]) == 1
    has = [file.removesuffix(".html"), claim.origin, *(["over"] if over else [])]
    return {
        **asdict(claim), "id": f"{claim.data}.{claim.threat}.{claim.name}", "board": title, "over": over,
        "has": " ".join(has), "href": _href(file, claim.name, claim.origin), "text": points(claim.overclaim),
        "x_claimed": round(WIDTH * claim.claimed, 1), "x_measured": round(WIDTH * claim.measured, 1),
    }  # fmt: skip


def _flags() -> str:
    groups = [("Raised by the board", BOARD_FLAGS), ("Raised by health checks of our own runs", FLAGS)]
    return _render("flags.html", here="flags.html", groups=groups)


def _entry(entry: Entry, file: str, board: Board, pictures: dict[str, Any] | None) -> str:
    card = entry.card
    if isinstance(card, CertifiedCard):
        intervals = [(share.radius, Estimate(share.value, share.low, share.high)) for share in card.certified]
        return _render(
            "certified.html", here="", card=card, board_file=file, board_title=_title(board), facts=_facts(entry),
            curves=curves_of([(card.spec.classifier, card.curve())], intervals),
        )  # fmt: skip
    attacks = [
        {"name": a["name"], "broken": a["broken"], "forwards": a["forwards"] / card.n,
         "backwards": a["backwards"] / card.n}
        for a in attacks_of(entry.record)
    ]  # fmt: skip
    claimed = card.claimed
    return _render(
        "entry.html", here="", card=card, board_file=file, board_title=_title(board), attacks=attacks,
        pictures=pictures, facts=_facts(entry), meanings={name: meaning(name) for name in card.flags},
        robust_bar=bar_of(card.robust_accuracy, 1.0), clean_bar=bar_of(card.clean_accuracy, 1.0),
        overclaim=points(claimed.value - card.robust_accuracy.value) if claimed else "",
    )  # fmt: skip


def _facts(entry: Entry) -> list[tuple[str, str]]:
    """What the run depended on, in words."""
    card, machine = entry.card, entry.card.environment
    spec = card.spec
    told = [
        ("architecture", card.architecture), ("source", card.source), ("licence", card.licence),
        ("weights, sha256", spec.weights_sha256), ("images", f"{spec.data}, ids {spec.ids}"),
        ("images, sha256", spec.data_sha256), *_asked(card), ("seed", str(spec.seed)),
        ("search form", spec.precision), ("identity", card.identity), ("date", card.date),
    ]  # fmt: skip
    if card.origin is not None:
        told.append(("network", " with ".join(filter(None, (card.origin.classifier, card.origin.weights)))))
    for name, value in sorted(machine.items()):
        if isinstance(value, Mapping):
            told.append((name, ", ".join(f"{key} {held}" for key, held in sorted(value.items()))))
        elif value is not None and value is not False:
            told.append((name, str(value)))
    return told


def _asked(card: EntryCard | CertifiedCard) -> list[tuple[str, str]]:
    """What only one kind of entry has."""
    if isinstance(card, EntryCard):
        return [("threat model", card.spec.threat), ("plan", card.spec.plan)]
    spec = card.spec
    return [
        ("noise", f"{spec.noise}, sigma {spec.sigma:g}"), ("method", f"{spec.method}, profile {spec.profile}"),
        ("draws that choose the class (n0)", f"{spec.selection:,}"), ("draws at most (n)", f"{spec.samples:,}"),
        ("alpha", f"{spec.alpha:g}"),
    ]  # fmt: skip


def _witnesses(entry: Entry) -> dict[str, Any] | None:
    held = entry.card.pictures if isinstance(entry.card, EntryCard) else ()
    if not held:
        return None
    factor = amplification(held)
    shown = [
        {
            "file": f"witnesses/{entry.card.name}-{picture.id}.png", "png": png_of(picture, factor),
            "alt": f"Example {picture.id}: clean {picture.label}, adversarial image taken for {picture.prediction}, "
                   "and their difference",
            "caption": f"{picture.label} → {picture.prediction} (example {picture.id})",
            "width": 3 * picture.shape[2] + 4, "height": picture.shape[1],
        }
        for picture in held
    ]  # fmt: skip
    return {"factor": factor, "shown": shown}


def _shown(row: Row, top: float) -> dict[str, Any]:
    """A row as the template reads it; the words in `has` are what the boxes above the table filter by."""
    words = {
        "listed": row.listed and row.origin == "published", "own": row.origin == "ours",
        "no-extra": row.extra_data is False, "no-flag": not row.flags,
    }  # fmt: skip
    held = {name: getattr(row, name) for name in Row.__dataclass_fields__}
    claim = None if row.overclaim is None else round(100 * row.overclaim, 6)
    tip = [f"robust {_told(row.robust)}", f"clean {_told(row.clean)}", f"rank {row.rank}"]
    return {
        **held, "has": " ".join(name for name, true in words.items() if true), "bar": bar_of(row.robust, top),
        "href": _href("", row.name, row.origin), "tied": row.tied, "overclaim": claim,
        "over": claim is not None and claim > 1, "overclaim_text": points(row.overclaim), "tip": "\n".join(tip),
    }  # fmt: skip


def _told(figure: Estimate) -> str:
    return f"{100 * figure.value:.2f} % [{100 * figure.low:.2f}, {100 * figure.high:.2f}]"


def _href(file: str, name: str, origin: str) -> str:
    """Where more about an entry is: its own page, or its row on a board."""
    return quote(_entry_file(name)) if origin == "ours" else f"{file}#row={quote(name, safe='')}"


def _entry_file(name: str) -> str:
    return f"entry-{name}.html"


def _title(board: Board) -> str:
    norm, _, eps = board.threat.partition(":")
    return f"{_DATA.get(board.data, board.data)}, {_NORMS.get(norm, norm)} {eps}".strip()


def _file_names(boards: Iterable[Board]) -> dict[str, Board]:
    """A file name for each board: letters, digits and hyphens, a number where two would be called alike."""
    named: dict[str, Board] = {}
    for board in boards:
        words = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{board.data}-{board.threat}")
        stem = "-".join(part for part in words.split("-") if part)
        taken = sum(file.startswith(f"board-{stem}") for file in named)
        named[f"board-{stem}{f'-{taken + 1}' if taken else ''}.html"] = board
    return named


def _render(template: str, **values: Any) -> str:
    file = load_published()[0]
    shared = {"policy": POLICY, "pages": _PAGES, "version": f"robustgen {__version__}", "commit": file.commit,
              "commit_date": file.date, "step": _STEP}  # fmt: skip
    return _templates().get_template(template).render(**shared, **values)


@functools.cache
def _templates() -> Environment:
    if find_spec("jinja2") is None:
        raise SpecError("pages need jinja2; type pip install 'robustgen[report]'.")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    made.filters["breakable"] = _breakable
    return made


def _breakable(text: str) -> str:
    """A name, escaped, whose line may break after each _."""
    from markupsafe import Markup, escape

    return escape(text).replace("_", Markup("_<wbr>"))
