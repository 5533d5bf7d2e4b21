"""Truncated bytecode that imports write on a full disk does not remain."""

from importlib.util import cache_from_source

import pytest

from support.live import value
from support.small_disk import filled, small_disk

CODE = "".join(f"def f{n}(x):\n    return [x, {n}]\n" for n in range(1000))


def source(body: str) -> str:
    return "def f():\n" + "".join(f"    {line}\n" for line in body.split("; "))


@pytest.mark.parametrize("leaving", [0, 4096, 20_000])
def test_a_disk_that_is_full_for_a_moment_leaves_no_truncated_bytecode(
    make_live, tmp_path, leaving
):
    """This concerns bytecode of the server's own interpreter and of a user's files."""
    with small_disk(tmp_path / "small") as disk:
        module = disk / "large.py"
        module.write_text(CODE)
        written = disk / "__pycache__" / cache_from_source("large.py").rpartition("/")[2]
        live = make_live(extra_path=(str(disk),)).ready()
        body = "import large; return large.f7(1)"
        with filled(disk, leaving=leaving):
            assert value(live.call(source(body))) == [1, 7]
        assert not written.exists()
        assert value(live.call(source(body))) == [1, 7]
        assert written.exists(), "bytecode is written where there is space"
        size = written.stat().st_size
        assert value(live.call(source(body))) == [1, 7]
        assert written.stat().st_size == size
        assert list(written.parent.iterdir()) == [written]
