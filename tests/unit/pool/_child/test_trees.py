"""Removal of directories that calls filled, and of nothing else."""

import os
import sys
from pathlib import Path

import pytest

from flashpool.pool._child import trees


def nested(top: Path, depth: int) -> None:
    """Create a chain of directories that is longer than a path may be."""
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


def test_a_tree_deeper_than_recursion_and_path_limits_is_removed(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    nested(top, 3 * sys.getrecursionlimit())
    assert trees.remove(str(top))
    assert not top.exists()


def test_a_tree_of_many_files_directories_and_links_is_removed(tmp_path):
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


def test_a_link_is_removed_without_its_target(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert not trees.remove(str(tmp_path / "link"))
    assert (tmp_path / "there").is_dir()


def test_removing_a_missing_tree_succeeds(tmp_path):
    assert trees.remove(str(tmp_path / "nothing"))


def test_a_file_that_cannot_be_removed_ends_the_removal(tmp_path, monkeypatch):
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
def test_directories_without_permissions_are_removed(tmp_path, user):
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
