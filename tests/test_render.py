"""README and docs say what the stored results and the code say."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustgen.benchmarks.render import BLOCKS, DOCUMENTS, render


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_rendered_from_results(path: Path) -> None:
    """Rendering changes nothing: every figure comes from a stored result."""
    text = path.read_text(encoding="utf-8")
    assert render(text) == text


def test_every_block_is_used() -> None:
    """No table is made that nobody sees."""
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert all(f"<!-- results: {name} -->" in text for name in BLOCKS)
