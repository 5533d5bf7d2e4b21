"""The typed keywords that editors see for `Pool` match the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from flashpool.pool.config import PoolConfig, PoolKeywords
from flashpool.pool.executor import pool_parameters
from flashpool.pool.executor.call_options import CallKeywords, CallOptions

PATHS = {"base_python", "workdir"}


@pytest.mark.parametrize(
    ("keywords", "kept", "left_out"),
    [(CallKeywords, CallOptions, ()), (PoolKeywords, PoolConfig, pool_parameters.TAKEN)],
    ids=["options", "pool"],
)
def test_typed_keywords_match_the_real_ones(
    keywords: Any, kept: Any, left_out: tuple[str, ...]
) -> None:
    types = {field.name: get_type_hints(kept)[field.name] for field in fields(kept)}
    expected = {name: kind for name, kind in types.items() if name not in left_out}
    hints = get_type_hints(keywords)
    assert list(hints) == list(expected), "in the same order, so that they are easy to compare"
    for name, kind in expected.items():
        # A caller may pass more types than the stored value has.
        if kind == tuple[str, ...]:
            kind = Iterable[str]
        elif name in PATHS:
            kind = str | os.PathLike[str]
        assert hints[name] == kind, name


PROGRAM = """
from flashpool.pool import Pool

with Pool(2, queue_limit=3, preload=["json"]) as pool:
    pool.options(timeout=3, dependencies=["six"], gpus=1).submit(abs, -1)
    pool.instance(list, memory_mb=100, rebuild=True, max_concurrency=2)
    Pool(queue_limt=3)
    Pool(queue_limit="three")
    pool.options(timeot=3)
    pool.options(timeout="three")
    pool.options().options(isolation=None)
    pool.instance(list, memory=100)
    pool.instance(list, memory_mb="much")
"""


@pytest.mark.slow
def test_a_type_checker_accepts_the_keywords(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    wrong = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if number > 6 and line]
    command = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", str(program)]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    told = [line.split(":") for line in ended.stdout.splitlines() if ": error:" in line]
    assert [(Path(file).name, int(line)) for file, line, *_ in told] == [
        ("program.py", line) for line in wrong
    ], ended.stdout + ended.stderr
