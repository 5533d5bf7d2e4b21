"""Markdown pages, apart into prose and fenced blocks with their marks.

A mark is an HTML comment on a line of its own before a block, invisible to readers. It says what
the checks do with the block:

    <!-- run -->           run it by itself, in a directory of its own
    <!-- file: NAME -->    write it to this file
    <!-- step -->          run it, after the steps before it
    <!-- server: PORT -->  start it, and leave it running; it listens on this port
    <!-- cells -->         run it as a cell of the page's notebook
    <!-- output -->        what the last step printed; ``...`` stands for any text

`following` follows the files, steps and servers of a page in their order.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
_FENCE: Final = re.compile(r"^(\s*)```(\w*)\s*$")
_MARK: Final = re.compile(r"^\s*<!-- (run|file|step|server|cells|output)(?:: (\S+))? -->$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of code, without its indentation."""

    line: int
    language: str
    text: str
    #: The mark before the block, or empty; and the word after the mark's colon.
    mark: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A Markdown file, apart into prose and code."""

    path: Path
    prose: list[tuple[int, str]]
    blocks: list[Block]

    @property
    def anchors(self) -> set[str]:
        return {_anchor(text) for _, text in self.prose if text.startswith("#")}

    @property
    def is_followed(self) -> bool:
        """Return whether the page has steps for `following`."""
        return any(block.mark in {"step", "server", "cells"} for block in self.blocks)


def all_pages() -> list[Page]:
    """The pages at the root, in docs/ and in examples/."""
    folders = [ROOT / "docs", ROOT / "examples"]
    paths = [*ROOT.glob("*.md"), *(path for one in folders for path in one.rglob("*.md"))]
    return [read_page(path) for path in sorted(paths)]


def read_page(path: Path) -> Page:
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    lines = list(enumerate(path.read_text("utf-8").splitlines(), 1))
    while lines:
        number, line = lines.pop(0)
        opening = _FENCE.match(line)
        if not opening:
            prose.append((number, line))
            continue
        code = _take_block(lines, len(opening[1]))
        mark, about = _mark(prose[-2:])
        blocks.append(Block(line=number, language=opening[2], text=code, mark=mark, about=about))
    return Page(path=path, prose=prose, blocks=blocks)


def _mark(before: list[tuple[int, str]]) -> tuple[str, str]:
    for _, text in before:
        if found := _MARK.match(text):
            return found[1], found[2] or ""
    return "", ""


def _take_block(lines: list[tuple[int, str]], indent: int) -> str:
    code = []
    while lines:
        _, line = lines.pop(0)
        if _FENCE.match(line):
            break
        code.append(line[indent:])
    return "\n".join(code) + "\n"


def _anchor(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower())
    return words.replace(" ", "-")
