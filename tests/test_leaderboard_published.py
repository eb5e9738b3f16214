"""Published figures: what the files hold, and what is refused in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from robustgen.errors import ArtifactError, SpecError
from robustgen.leaderboard.published import PublishedFile, load_published, read_published


def test_all_entries_are_there() -> None:
    """236 entries on seven boards, each file with its source, commit and date."""
    files = load_published()
    assert {"cifar10": 143, "cifar100": 51, "imagenet": 42} == {file.data: len(file.entries) for file in files}
    assert 7 == sum(len(file.boards) for file in files)
    assert {("78fcc9e", "2025-03-31")} == {(file.commit, file.date) for file in files}


@pytest.mark.parametrize("file", load_published(), ids=lambda file: file.data)
def test_every_figure_is_possible_with_the_images_assumed(file: PublishedFile) -> None:
    """An accuracy of n images is a multiple of 1/n; figures of CIFAR and ImageNet are of the n that a board assumes.

    Corruption accuracies are means over 75 versions of the images, so only their clean ones are held to that.
    """
    images = {board.threat.partition(":")[0]: board.images for board in file.boards}
    for entry in file.entries:
        figures = [entry.clean, entry.autoattack, entry.best_known]
        for figure in figures:
            if figure is not None:
                count = figure / 100 * images[entry.threat]
                assert abs(count - round(count)) < 1e-6, (entry.key, figure)


def test_fewer_images_would_not_do() -> None:
    """With half of the images some figures were impossible: the check above can fail."""
    for file in load_published():
        halves = [entry.clean / 100 * file.boards[0].images / 2 for entry in file.entries]
        assert any(abs(half - round(half)) > 0.1 for half in halves)


@pytest.mark.parametrize(("link", "venue", "date"), [
    ("https://arxiv.org/abs/2406.05927", "NeurIPS 2024", "2024-06"),
    ("https://openreview.net/forum?id=x", "OpenReview, Sep 2019", "2019-09"),
    ("https://example.org", "ICLR 2020", "2020"),
    ("https://example.org", "N/A", ""),
])  # fmt: skip
def test_date_comes_from_the_link_or_the_venue(tmp_path: Path, link: str, venue: str, date: str) -> None:
    """An arXiv number tells the month, else the venue month or year, else nothing does."""
    (entry,) = read_published(written(tmp_path, link=link, venue=venue)).entries
    assert date == entry.date


GOOD: dict[str, Any] = {
    "key": "Someone2024Better", "threat": "linf", "eps": "8/255", "paper": "A paper", "link": "https://example.org/a",
    "venue": "ICLR 2024", "architecture": "WideResNet-28-10", "extra_data": False, "forward_passes": 1, "clean": 90.0,
    "reported": 60.0, "autoattack": 59.0, "best_known": None, "unreliable": None, "corruptions": None,
    "corruptions_3d": None, "mce": None, "zoo": True,
}  # fmt: skip


def written(folder: Path, *, entries: int = 1, **changed: Any) -> Path:
    """A file of one entry, changed as told; a field that becomes `...` is left out."""
    entry = {key: value for key, value in {**GOOD, **changed}.items() if value is not ...}
    head = {"data": "cifar10", "source": "s", "commit": "c", "date": "2025-03-31", "licence": "MIT"}
    boards = [{"threat": "linf:8/255", "images": 10000, "images_are": "all"}]
    path = folder / "cifar10.json"
    path.write_text(json.dumps({**head, "boards": boards, "entries": [entry] * entries}), encoding="utf-8")
    return path


def test_the_good_entry_is_read(tmp_path: Path) -> None:
    """What the cases below break is fine as it is."""
    (entry,) = read_published(written(tmp_path)).entries
    assert (59.0, 59.0) == (entry.measured, entry.robust)


@pytest.mark.parametrize(("changed", "message"), [
    ({"clean": 101.0}, "clean must be a percentage from 0 to 100, got 101.0"),
    ({"clean": "90"}, "clean must be a percentage from 0 to 100, got '90'"),
    ({"clean": 58.0}, "autoattack 59.0 is above clean 58.0"),
    ({"best_known": 59.5}, "best_known 59.5 is above autoattack 59.0"),
    ({"autoattack": None}, "a board of linf needs autoattack"),
    ({"extra_data": 1}, "extra_data must be true or false, got 1"),
    ({"link": "javascript:alert(1)"}, "link must be an http address"),
    ({"key": "<b>x</b>"}, "key must be letters, digits"),
    ({"threat": "l7"}, "threat must be one of linf, l2, corruptions, got 'l7'"),
    ({"threat": "l2"}, "no board of this file is of l2"),
    ({"paper": ...}, r"the field 'entries\[0\].paper' is missing"),
    ({"papr": "x"}, r"unknown field 'entries\[0\].papr'; did you mean 'entries\[0\].paper'"),
    ({"entries": 2}, "stands twice on the board of linf"),
])  # fmt: skip
def test_bad_entries_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """One sentence that names file, entry and field."""
    path = written(tmp_path, **changed)
    with pytest.raises(SpecError, match=message) as error:
        read_published(path)
    assert re.match(re.escape(f"{path}: "), str(error.value))
    assert 1 == len(str(error.value).splitlines())


@pytest.mark.parametrize(("content", "kind", "message"), [
    ('{"data": "a", "data": "b"}', SpecError, "the key 'data' stands twice"),
    ('{"data": NaN}', SpecError, "NaN is no number of JSON"),
    ("[1]", SpecError, "must be one JSON object, got list"),
    ("{", ArtifactError, "is not JSON"),
    ("[" * 100_000, SpecError, "nested more than 32 levels deep"),
    ('{"data": "a", "entries": 3}', SpecError, "'boards' must be a list of objects"),
])  # fmt: skip
def test_files_that_are_none(tmp_path: Path, content: str, kind: type[Exception], message: str) -> None:
    """A key twice, NaN, another shape, half a file, a file that nests without end."""
    path = tmp_path / "x.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(kind, match=message):
        read_published(path)


def test_missing_and_huge_files(tmp_path: Path) -> None:
    """A file that is not there, and one that is not read because of its size."""
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_published(tmp_path / "none.json")
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(17_000_000)
    with pytest.raises(ArtifactError, match="has 17,000,000 bytes, at most 16,000,000 are read"):
        read_published(huge)
