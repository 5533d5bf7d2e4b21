"""Check the pages at the root, in docs/ and in examples/: links lead somewhere, Python in them is real.

    links      relative ones must exist, with their #anchor; others are not fetched
    ```python  must compile; after a line `<!-- run -->` it is also run, in a directory of its
               own, and must exit with 0
    ```json    must parse
    steps      are left to tests/e2e/test_docs.py, which follows the pages that have any
    make X     in code must be a target of the Makefile
    settings   each has its row in docs/operations.md, in the words of `flashpool settings`, and
               no FLASHPOOL_* is named that is none

Prints what is wrong, as file:line, and exits with 1 if anything is.
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .pages import ROOT, Block, Page, all_pages, read_page

RUN_LIMIT_S: Final = 60
_LINK: Final = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_ROW: Final = re.compile(r"^\| `(FLASHPOOL_\w+)` \|.*?\| (.*) \| (.*) \|$")
_VARIABLE: Final = re.compile(r"\bFLASHPOOL_[A-Z_]*[A-Z]\b(?![_*]|\.\.\.)")
_MAKE: Final = re.compile(r"(?:^|`|\$ |&& )make ((?:-\w+ )?[a-z-]+)", re.MULTILINE)


def faults(page: Page, targets: set[str]) -> Iterator[str]:
    for number, text in page.prose:
        for link in _LINK.findall(text):
            yield from _located(page, number, _link_fault(page, link))
        for target in _MAKE.findall(text):
            if target not in targets:
                yield from _located(page, number, f"no such target: make {target}")
    for block in page.blocks:
        yield from _located(page, block.line, _block_fault(block))
        if block.language in {"", "sh", "console", "bash"}:
            for target in set(_MAKE.findall(block.text)) - targets:
                yield from _located(page, block.line, f"no such target: make {target}")


def _located(page: Page, line: int, fault: str | None) -> Iterator[str]:
    if fault:
        yield f"{page.path.relative_to(ROOT)}:{line}: {fault}"


def _link_fault(page: Page, link: str) -> str | None:
    if re.match(r"[a-z]+:", link):
        return None
    target, _, anchor = link.partition("#")
    path = (page.path.parent / target) if target else page.path
    if not path.exists():
        return f"dead link: {link}"
    if anchor and path.suffix == ".md" and anchor not in read_page(path).anchors:
        return f"no such heading: {link}"
    return None


def _block_fault(block: Block) -> str | None:
    try:
        if block.language == "python":
            cell = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if block.mark == "cells" else 0
            compile(block.text, "block", "exec", flags=cell)
        elif block.language == "json":
            json.loads(block.text)
    except (SyntaxError, ValueError) as error:
        return f"{block.language} block: {error}"
    return _run_fault(block) if block.mark == "run" else None


def _run_fault(block: Block) -> str | None:
    program = [sys.executable] if block.language == "python" else ["bash", "-e"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "example"
        script.write_text(block.text, "utf-8")
        run = subprocess.run(
            [*program, str(script)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )
    return (
        f"block exits with {run.returncode}:\n{run.stdout}{run.stderr}" if run.returncode else None
    )


def settings_faults(pages: list[Page]) -> Iterator[str]:
    """Settings without a row, rows without a setting, rows that say something else."""
    known = _settings()
    operations = next(page for page in pages if page.path.name == "operations.md")
    described = set()
    for number, text in operations.prose:
        row = _ROW.match(text)
        if not row or row[1] not in known:
            continue
        described.add(row[1])
        for kind, said in (("accepts", row[2]), ("meaning", row[3])):
            if said.replace("`", "") != known[row[1]][kind]:
                fault = f"{row[1]}: says {said!r}, `flashpool settings` {known[row[1]][kind]!r}"
                yield from _located(operations, number, fault)
    for name in sorted(known.keys() - described):
        yield f"docs/operations.md: no row for the setting {name}"
    for page in pages:
        code = [(block.line, block.text) for block in page.blocks]
        for number, text in [*page.prose, *code]:
            found = {name.removesuffix("_FILE") for name in _VARIABLE.findall(text)}
            for name in sorted(found - known.keys()):
                yield from _located(page, number, f"no such setting: {name}")


def _settings() -> dict[str, dict[str, str]]:
    # Defaults that follow the machine are left out: only words are compared.
    command = [str(Path(sys.executable).with_name("flashpool")), "settings", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=True)
    found: dict[str, dict[str, str]] = json.loads(run.stdout)
    return found


def main() -> int:
    pages = all_pages()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    found = [fault for page in pages for fault in faults(page, targets)]
    found += settings_faults(pages)
    print("\n".join(found) if found else f"{len(pages)} pages are sound")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
