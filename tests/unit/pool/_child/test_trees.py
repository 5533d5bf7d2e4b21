"""Directories that calls filled are removed, and nothing beside them."""

import os
import sys
from pathlib import Path

import pytest

from flashpool.pool._child import trees


def nested(top: Path, depth: int) -> None:
    """A chain of directories, deeper than a path can say."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(top)
    try:
        for number in range(depth):
            Path("file").write_text(str(number))
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
    finally:
        os.fchdir(before)
        os.close(before)


def test_a_tree_deeper_than_recursion_and_paths_bear(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    nested(top, 3 * sys.getrecursionlimit())
    assert trees.remove(str(top))
    assert not top.exists()


def test_many_files_directories_and_links(tmp_path):
    top, outside = tmp_path / "top", tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    for one in ("a/b/c", "a/d", "e"):
        (top / one).mkdir(parents=True)
        for number in range(10):
            (top / one / str(number)).touch()
        (top / one / "link").symlink_to(outside)
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "a" / "pipe")
    (top / "a" / "b").chmod(0)
    assert trees.remove(str(top))
    assert not top.exists()
    assert (outside / "kept").is_dir()


def test_a_link_is_not_a_tree(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert not trees.remove(str(tmp_path / "link"))
    assert (tmp_path / "there").is_dir()


def test_what_is_not_there_is_removed(tmp_path):
    assert trees.remove(str(tmp_path / "nothing"))


def test_what_cannot_be_removed_ends_it(tmp_path, monkeypatch):
    (tmp_path / "top" / "a" / "b").mkdir(parents=True)
    rmdir = os.rmdir

    def refuse(path, **options):
        if str(path).startswith("."):
            raise PermissionError("as on a disk that fails")
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    assert not trees.remove(str(tmp_path / "top"))


@pytest.mark.parametrize("user", [0, 65534])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_directories_without_permissions(tmp_path, user):
    top = tmp_path / "top"
    (top / "shut" / "inner").mkdir(parents=True)
    (top / "shut" / "inner" / "file").touch()
    tmp_path.chmod(0o777)
    for path in (top, top / "shut", top / "shut" / "inner"):
        os.chown(path, user, user)
    (top / "shut" / "inner").chmod(0)
    (top / "shut").chmod(0)
    pid = os.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.setuid(user)
        os._exit(0 if trees.remove("top") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not top.exists()
