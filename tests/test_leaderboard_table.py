"""Boards as tables: the README of RobustBench row for row, and what it lacks."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from robustgen.cli import _run
from robustgen.leaderboard.boards import Row, board_names, make_board, rank_rows
from robustgen.leaderboard.claims import board_claims, claims_of, over_a_point, show_claims
from robustgen.leaderboard.published import load_published
from robustgen.leaderboard.table import ranks, show_board
from robustgen.statistics import proportion, share_interval
from tests.helpers import ROOT

TABLES = ROOT / "tests" / "data" / "robustbench_readme_tables.tsv"  # the README of RobustBench at 78fcc9e, MIT
BOARDS = board_names(())


def readme() -> list[dict[str, str]]:
    """The 206 rows of the README's tables, in their order."""
    lines = [line for line in TABLES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t"))


def command(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints on stdout."""
    assert 0 == _run(["leaderboard", *words])
    return capsys.readouterr().out


@pytest.mark.parametrize(("data", "threat"), BOARDS)
def test_readme_row_for_row(data: str, threat: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank, name, clean and robust accuracy of each README row, in its order, from the command that makes the table."""
    out = command(capsys, "table", "--data", data, "--threat", threat, "--published", "--format", "csv")
    mine = [
        (row["#"], row["entry"], f"{float(row['clean']):.2f}", f"{float(row['robust']):.2f}")
        for row in csv.DictReader(io.StringIO(out))
    ]
    theirs = [
        (row["rank"], row["key"], row["clean"], row["robust"])
        for row in readme()
        if (row["data"], row["threat"].lower()) == (data, threat.partition(":")[0])
    ]
    assert theirs == mine
    assert len(mine) >= 12


def test_readme_has_206_rows() -> None:
    """The copy under tests/ is whole, and the boards together have as many."""
    assert 206 == len(readme()) == sum(len(make_board(data, threat, ()).rows) for data, threat in BOARDS)


def test_all_entries_on_request() -> None:
    """With `unlisted` the 30 entries without weights stand on the boards too, and ranks count them."""
    rows = [row for data, threat in BOARDS for row in make_board(data, threat, (), unlisted=True).rows]
    assert 236 == len(rows)
    assert 30 == sum(not row.listed for row in rows)


def test_intervals_are_wilson_s() -> None:
    """The interval is that of scipy for the count behind the figure, with the n that the board states."""
    (row,) = (row for row in make_board("imagenet", "linf:4/255", ()).rows if row.name == "Salman2020Do_R50")
    expected = proportion(1748, 5000)
    assert 5000 == row.n
    assert (expected.value, expected.low, expected.high) == pytest.approx(
        (row.robust.value, row.robust.low, row.robust.high), abs=1e-12
    )


def a_row(name: str, right: int, n: int = 1000, **more: object) -> Row:
    """A row with so many of n images robust."""
    base = Row(
        name=name, shown=name, origin="ours", title="t", link="", architecture="a", venue="v", date="2026",
        clean=share_interval(1.0, n), robust=share_interval(right / n, n), measured=right / n, best_known=None,
        claimed=None, n=n, extra_data=None, extra={}, flags=(),
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


def spans(rows: Sequence[Row]) -> list[tuple[str, int, int, int]]:
    """Name, rank, best and worst rank."""
    return [(row.name, row.rank, row.best, row.worst) for row in rank_rows(rows)]


def test_ranks_by_overlap() -> None:
    """Wilson intervals of 1,000 images: 500 [46.9, 53.1] overlaps 540 [50.9, 57.1], that overlaps 590 [55.9, 62.0]."""
    rows = [a_row("low", 500), a_row("mid", 540), a_row("high", 590), a_row("far", 900)]
    assert [("far", 1, 1, 1), ("high", 2, 2, 3), ("mid", 3, 2, 4), ("low", 4, 3, 4)] == spans(rows)


def test_ranks_are_shown_as_a_span() -> None:
    """Where the data leave several ranks open, and as one where they do not."""
    rows = rank_rows([a_row("low", 500), a_row("mid", 540), a_row("high", 590), a_row("far", 900)])
    assert ["1", "2-3", "2-4", "3-4"] == [ranks(row) for row in rows]


def test_paired_test_sees_more_than_intervals() -> None:
    """12 images lost and none gained: intervals overlap, the paired test tells the two apart (p = 2^-11)."""
    whole = frozenset(range(500, 1000))
    upper = a_row("upper", 500, images=("data", "0-999"), broken=whole)
    lower = a_row("lower", 488, images=("data", "0-999"), broken=whole | frozenset(range(12)))
    assert [("upper", 1, 1, 1), ("lower", 2, 2, 2)] == spans([upper, lower])
    elsewhere = replace(lower, images=("other data", "0-999"))
    assert [("upper", 1, 1, 2), ("lower", 2, 1, 2)] == spans([upper, elsewhere])
    swapped = replace(lower, broken=frozenset(range(100, 612)))  # 100 to 499 lost, 612 to 999 gained
    assert [("upper", 1, 1, 2), ("lower", 2, 1, 2)] == spans([upper, swapped])


def test_flags_of_published_entries() -> None:
    """Unreliable, beaten after AutoAttack, overclaiming, and measured at 0.031: as the data say."""
    rows = {row.name: row for row in make_board("cifar10", "linf:8/255", (), unlisted=True).rows}
    assert {"Kang2021Stable", "Xiao2020Enhancing"} == {n for n, row in rows.items() if "unreliable" in row.flags}
    assert ("unreliable", "broken-further", "overclaim", "other-eps") == rows["Xiao2020Enhancing"].flags
    assert 6 == sum("other-eps" in row.flags for row in rows.values())
    assert 31 == sum("overclaim" in row.flags for row in rows.values())
    assert () == rows["Bartoldson2024Adversarial_WRN-94-16"].flags


def test_wall_of_claims() -> None:
    """31 of 99 CIFAR-10 Linf entries claim over a point more than AutoAttack leaves; the list falls."""
    claims = board_claims(make_board("cifar10", "linf:8/255", (), unlisted=True))
    assert (99, 31) == (len(claims), over_a_point(claims))
    source = [e for file in load_published() if file.data == "cifar10" for e in file.entries if e.threat == "linf"]
    beyond = {e.key for e in source if e.reported is not None and e.autoattack is not None
              and e.reported - e.autoattack > 1}  # fmt: skip
    assert {claim.name for claim in claims[:31]} == beyond
    assert [claim.overclaim for claim in claims] == sorted((claim.overclaim for claim in claims), reverse=True)
    assert "Alfarra2020ClusTR" == claims[0].name


def test_claims_of_all_boards() -> None:
    """214 of 236 entries state a claim."""
    assert 214 == len(claims_of(()))


def test_exactly_a_point_is_not_over_a_point() -> None:
    """60.04 against 59.04 is a point, whatever binary fractions make of it."""
    (claim,) = board_claims(
        replace(make_board("cifar10", "l2:0.5", ()), rows=(a_row("x", 5904, 10000, claimed=0.6004),))
    )
    assert 0 == over_a_point([claim])
    assert 1 == over_a_point([replace(claim, overclaim=0.0101)])


def test_json_holds_what_the_table_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Fractions of 1 with intervals, null where there is no figure."""
    out = json.loads(command(capsys, "table", "--data", "imagenet", "--threat", "corruptions", "--format", "json"))
    first = out["rows"][0]
    assert ("Tian2022Deeper_DeiT-B", 1, None) == (first["name"], first["rank"], first["claimed"])
    assert first["robust"]["low"] < first["robust"]["value"] < first["robust"]["high"] < 1
    assert {"3DCC": 65.9, "mCE": 41.7} == first["extra"]


@pytest.mark.parametrize(("format_", "expected"), [
    ("rich", "Amini2024MeanSparse_S-WRN-70-16"),
    ("md", "| Amini2024MeanSparse_S-WRN-70-16 | 95.51 | 84.33 [83.60, 85.03] |"),
    ("latex", r"Amini2024MeanSparse\_S-WRN-70-16 & 95.51 & 84.33 [83.60, 85.03]"),
])  # fmt: skip
def test_other_forms(capsys: pytest.CaptureFixture[str], format_: str, expected: str) -> None:
    """The same row for people, for Markdown and for LaTeX, whose signs are escaped."""
    out = command(capsys, "table", "--data", "cifar10", "--threat", "L2:0.5", "--published", "--format", format_)
    assert expected in out
    names = [row.name for row in make_board("cifar10", "l2:0.5", ()).rows]
    escaped = [name.replace("_", r"\_") if format_ == "latex" else name for name in names]
    places = [re.search(rf"[ |]{re.escape(name)} ", out) for name in escaped]
    assert 21 == len(places)
    assert [place.start() for place in places if place] == sorted(place.start() for place in places if place)
    assert None not in places


def test_markdown_takes_no_html_from_names() -> None:
    """A name that is HTML stays text in Markdown, on a board and on the wall of claims."""
    row = a_row("x", 500, claimed=0.9, shown="<img src=x onerror=alert(1)>|", architecture="<b>")
    board = replace(make_board("cifar10", "l2:0.5", ()), rows=(row,))
    for text in (show_board(board, "md"), show_claims(board_claims(board), "md")):
        assert "<" not in text
        assert r"&lt;img src=x onerror=alert(1)&gt;\|" in text


@pytest.mark.parametrize(("words", "message"), [
    (("table", "--data", "cifar11"), "unknown data set 'cifar11'; did you mean 'cifar10'?"),
    (("table", "--data", "cifar10"), "cifar10 has several boards; add --threat linf:8/255 or --threat l2:0.5"),
    (("table", "--data", "cifar10", "--threat", "linf:4/255"), "did you mean 'linf:8/255'?"),
    (("table", "--data", "cifar10", "--threat", "linf:x"), "eps must be a number such as 8/255"),
    (("table", "--data", "cifar10", "--threat", "l2:0.5", "--format", "mdd"), "unknown --format 'mdd'; did you mean"),
    (("table", "--data", "cifar100", "--threat", "linf:8/255", "--ours"), "has no entries of our own; drop --ours"),
    (("claims", "--threat", "l2:0.5"), "--threat needs --data"),
    (("table", "--data", "cifar10", "--threat", "l2:0.5", "--entries", "nowhere"), "there is no such folder"),
])  # fmt: skip
def test_bad_requests(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    """One sentence on stderr, exit code 2."""
    assert 2 == _run(["leaderboard", *words])
    said = capsys.readouterr()
    assert "" == said.out
    assert message in said.err
    assert 1 == len(said.err.strip().splitlines())


def test_tables_need_no_torch() -> None:
    """Table and claims are made without torch and without scipy."""
    code = """
import sys
from robustgen.cli import _run
assert 0 == _run(["leaderboard", "table", "--data", "cifar10", "--threat", "l2:0.5", "--published", "--format", "csv"])
assert 0 == _run(["leaderboard", "claims", "--published"])
print("heavy:", sorted({"torch", "numpy", "scipy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "heavy: []" == done.stdout.strip().splitlines()[-1]
