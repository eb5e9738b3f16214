"""README says what the stored results say."""

from __future__ import annotations

from robustgen.benchmarks.render import BLOCKS, README, render


def test_readme_is_rendered_from_results() -> None:
    """Rendering changes nothing: every figure in README comes from a stored result."""
    text = README.read_text(encoding="utf-8")
    assert render(text) == text


def test_every_block_is_used() -> None:
    """No table is made that nobody sees."""
    text = README.read_text(encoding="utf-8")
    assert all(f"<!-- results: {name} -->" in text for name in BLOCKS)
