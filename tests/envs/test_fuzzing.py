"""No bytes and no names on a volume make a reader raise an untyped exception."""

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from support.volume_readers import Readers, examples

FUZZ: Final = Path(__file__).parents[1] / "support" / "fuzz_volume.py"
#: Duration of the long run, in seconds.
LONG_S: Final = float(os.environ.get("FUZZ_S", "600"))
FIELDS: Final = sorted(
    {"digest", "resolved", "requirements", "mac", "modules", "entries", "facts", "files"}
    | {"sha256", "size", "members", "content_bytes", "job_id", "streamed", "kept_at", "cut_off"}
    | {"mode", "python_version", "base_python", "site_dirs", "lock", "decisions", "reason"}
    | {"created", "bytes", "name", "version", "where", "why"}
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 1 << 63, 1 << 64, -1, True]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.text(), NUMBERS, st.just("a" * 40), st.just("b" * 40)),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner),
    max_leaves=20,
)
DEEP = st.builds(
    lambda depth, kind: (kind * depth).encode(),
    st.sampled_from([10, 900, 5000]),
    st.sampled_from(["[", '{"digest":', '{"files":[']),
)


def encoded(value: object) -> bytes:
    return repr(value).replace("'", '"').encode("utf-8", "surrogatepass")


def as_json(value: object) -> bytes:
    import json

    return json.dumps(value).encode()


def mutations(known: list[bytes]) -> st.SearchStrategy[bytes]:
    """Valid contents with a changed part."""

    def changed(content: bytes, at: int, length: int, new: bytes) -> bytes:
        start = 1 + at % len(content)
        return content[:start] + new + content[start + length :]

    return st.builds(
        changed,
        st.sampled_from(known),
        st.integers(0, 5000),
        st.integers(0, 50),
        st.binary(max_size=50)
        | st.sampled_from([b"\xc2\xb2", b"NaN", b"1e999", b"9" * 400, b"\0"]),
    )


def anything(readers: Readers) -> st.SearchStrategy[bytes]:
    chosen = st.integers(0, len(readers.all) - 1)
    told = st.one_of(
        st.binary(max_size=2000),
        st.dictionaries(st.sampled_from(FIELDS), VALUES).map(as_json),
        VALUES.map(encoded),
        DEEP,
    )
    fed = st.builds(lambda number, data: bytes([number]) + data, chosen, told)
    return fed | mutations(examples(readers))


def fuzzed(readers: Readers, count: int, number: int | None = None) -> None:
    """Run this many tries; different values of ``number`` give different tries."""

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=number is None,
    )
    @example(b"")
    @given(anything(readers))
    def feed(data: bytes) -> None:
        readers.feed(data)

    (feed if number is None else seed(number)(feed))()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Disable fsync, which is not needed here, and the long log of refusals."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_readers_raise_only_typed_errors(tmp_path: Path) -> None:
    readers = Readers(tmp_path)
    for known in examples(readers):
        # Otherwise a broken harness would pass without trying anything.
        readers.all[known[0]](known[1:])
    fuzzed(readers, 200)


@pytest.mark.slow
@pytest.mark.timeout(LONG_S + 300)
def test_readers_raise_only_typed_errors_in_a_long_run(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        readers, end, number = Readers(tmp_path), time.monotonic() + LONG_S, time.time_ns()
        while time.monotonic() < end:
            number += 1
            fuzzed(readers, 500, number)
        return
    limits = [f"-max_total_time={LONG_S:.0f}", "-timeout=60", "-max_len=20000", "-verbosity=1"]
    done = subprocess.run(
        [sys.executable, str(FUZZ), str(tmp_path), *limits],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LONG_S + 250,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "Done" in done.stderr, done.stderr[-2000:]
