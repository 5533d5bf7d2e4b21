"""Hooks for mkdocs: bring the files that pages link to into the site.

The pages in docs/ link to files outside of docs/, such as CONTRIBUTING.md or a test, as code
forges show them. Each such file becomes part of the site under its path in the repository:
Markdown as a page, anything else as a copy. Links are rewritten to match.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).resolve().parents[3]
_LINK: Final = re.compile(r"(\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
#: The site's first page replaces the README.
_REPLACED: Final = {"README.md": "index.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside of docs/ that pages link to, and those that they link to."""
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        page = waiting.pop()
        for path in _linked(page):
            uri = _uri(path)
            if uri in files.src_uris:
                continue
            file = File.generated(config, uri, abs_src_path=str(ROOT / path))
            files.append(file)
            if file.is_documentation_page():
                waiting.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links between files of the repository to links between files of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        path = _path(page.file, link[2])
        if path is None:
            return link[0]
        return f"{link[1]}{posixpath.relpath(_uri(path), folder or '.')}{link[3] or ''}{link[4]}"

    return _LINK.sub(rewritten, markdown)


def _linked(page: File) -> Iterator[str]:
    for link in _LINK.finditer(page.content_string):
        if path := _path(page, link[2]):
            yield path


def _path(page: File, link: str) -> str | None:
    """The file of the repository, relative to its root, that a link of a page leads to."""
    if not page.abs_src_path:
        return None
    path = os.path.normpath(Path(page.abs_src_path).parent / link)
    inside = os.path.relpath(path, ROOT)
    return inside if Path(path).is_file() and not inside.startswith("..") else None


def _uri(path: str) -> str:
    inside_docs = path.removeprefix("docs/")
    return _REPLACED.get(path, inside_docs)
