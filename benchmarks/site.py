"""What mkdocs calls while it builds the site: pages made from the code, and links that lead out of docs/.

mkdocs.yml names this file under `hooks`. `python -m robustgen.benchmarks.site SITE` says what a built site would fetch.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from robustgen.benchmarks.reference import (
    api_pages,
    command_line,
    linked_files,
    schemas,
    site_links,
    site_place,
    stored_results,
)

__all__ = ["foreign", "main", "on_files", "on_page_markdown"]

ROOT = Path(__file__).resolve().parent.parent
_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/, and the files to which pages link."""
    from mkdocs.structure.files import File

    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in _DOCUMENTS}
    made = {site_place(name): site_links(text, name) for name, text in pages.items()}
    made |= {
        "reference/command-line.md": command_line(), "reference/files.md": schemas(),
        "reference/results.md": stored_results(), **api_pages(),
    }  # fmt: skip
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    for name in linked_files():
        files.append(File.generated(config, site_place(name), abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a page of docs/ to other files of the repository, as they are in the site."""
    source = page.file.abs_src_path
    if source is None or page.file.generated_by is not None:
        return markdown
    return site_links(markdown, Path(source).resolve().relative_to(ROOT).as_posix())


class _Loads(HTMLParser):
    """What a page makes a browser fetch by itself; links that somebody clicks are not among it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.found.append(given.get("href", ""))
        self.found += [given[name] for name in ("src", "srcset", "data", "poster", "action") if name in given]
        if "style" in given:
            self.found += _addresses(given["style"])


def _addresses(css: str) -> list[str]:
    """What a style sheet fetches."""
    return [a or b for a, b in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", css)]


def foreign(site: Path) -> list[str]:
    """Everything that opening a page of a site would fetch from elsewhere, as "file: address".

    Args:
        site: folder that mkdocs built.
    """
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            parser = _Loads()
            parser.feed(path.read_text(encoding="utf-8"))
            loads = parser.found
        elif path.suffix == ".css":
            loads = _addresses(path.read_text(encoding="utf-8"))
        else:
            continue
        found += [f"{path.relative_to(site)}: {one}" for one in loads if re.match(r"(?:[a-z]+:)?//", one)]
    return found


def main() -> None:
    """Say what a built site (the argument) would fetch from elsewhere; exit code 1 when there is something."""
    found = foreign(Path(sys.argv[1]))
    print("\n".join(found) if found else "the site fetches nothing from elsewhere")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
