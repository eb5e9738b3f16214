"""Render README.md and docs/ from stored results and from the code: `python -m robustgen.benchmarks.render`.

Each block between `<!-- results: NAME -->` and `<!-- end -->` is replaced by what the function NAME of a module
render_*.py makes from results/*.json, or from the tables in the code. A test checks that the documents say what these
say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from robustgen.benchmarks import (
    render_black_box,
    render_bundled,
    render_certify,
    render_distances,
    render_generator,
    render_leaderboard,
    render_patches,
    render_plans,
    render_purify,
    render_scale,
    render_training,
    render_why,
)
from robustgen.benchmarks.render_reproduced import reproduced_blocks
from robustgen.benchmarks.tutorial import tutorial_blocks

__all__ = ["BLOCKS", "main", "render"]

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_MODULES = (
    render_black_box, render_bundled, render_certify, render_distances, render_generator, render_leaderboard,
    render_patches, render_plans, render_purify, render_scale, render_training, render_why,
)  # fmt: skip
BLOCKS: dict[str, Callable[[], str]] = {
    **{name: getattr(module, name) for module in _MODULES for name in module.__all__},
    **reproduced_blocks(),
    **tutorial_blocks(),
}


def render(text: str) -> str:
    """A document with every results block made anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- results: {match[1]} -->\n\n{BLOCKS[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the documents."""
    for path in DOCUMENTS:
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
