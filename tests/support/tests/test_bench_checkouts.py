"""The two checkouts of `make bench-against`: what is copied, and what is refused."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from bench import checkouts
from bench.checkouts import Checkout, Unusable
from bench.sides import Side

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and a working tree that differs from it in every way."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.setattr(checkouts, "ROOT", root)
    (root / ".gitignore").write_text("ignored\n")
    (root / "changed").write_text("before\n")
    (root / "deleted").write_text("")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "All of it")
    return root


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    subprocess.run(["git", "-C", root, *who, *arguments], check=True, timeout=30)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_working_tree_is_copied_unchanged(repository: Path, tmp_path: Path) -> None:
    (repository / "changed").write_text("after\n")
    (repository / "deleted").unlink()
    (repository / "ignored").write_text("")
    (repository / "sub").mkdir()
    (repository / "sub" / "added").write_text("")
    new = checkouts.of_working_tree(tmp_path / "new")
    assert names(new.source) == {".gitignore", "changed", "sub/added"}
    assert (new.source / "changed").read_text() == "after\n"
    assert new.label.endswith("All of it, with uncommitted changes")


def test_a_clean_working_tree_is_named_by_its_commit(repository: Path, tmp_path: Path) -> None:
    new = checkouts.of_working_tree(tmp_path / "new")
    assert names(new.source) == {".gitignore", "changed", "deleted"}
    assert new.label.endswith(" All of it")


def test_a_commit_is_copied_without_later_changes(repository: Path, tmp_path: Path) -> None:
    (repository / "changed").write_text("after\n")
    (repository / "added").write_text("")
    old = checkouts.of_commit(checkouts.resolved("HEAD"), tmp_path / "old")
    assert names(old.source) == {".gitignore", "changed", "deleted"}
    assert (old.source / "changed").read_text() == "before\n"
    assert names(old.folder) == {f"source/{name}" for name in names(old.source)}


@pytest.mark.parametrize("revision", ["no-such-branch", "HEAD~1", "HEAD:changed"])
def test_an_unknown_commit_is_refused(repository: Path, revision: str) -> None:
    with pytest.raises(Unusable, match=f"COMMIT={revision}: no such commit"):
        checkouts.resolved(revision)


def test_a_folder_that_is_not_a_repository_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkouts, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(Unusable, match="not a git repository"):
        checkouts.resolved("HEAD")


def test_a_checkout_that_cannot_be_installed_is_reported_with_uvs_message(tmp_path: Path) -> None:
    checkout = Checkout(name="old", label="abc123 Lose the lock", folder=tmp_path)
    checkout.source.mkdir()
    (checkout.source / "pyproject.toml").write_text('[project]\nname = "a"\nversion = "1"\n')
    with pytest.raises(Unusable, match=r"(?s)abc123 Lose the lock cannot be installed: .*uv\.lock"):
        checkouts.install(checkout, [])


def checkout_with(program: str, folder: Path) -> Checkout:
    """A checkout whose command `flashpool` is this script."""
    checkout = Checkout(name="old", label="abc123 Break it", folder=folder)
    checkout.python.parent.mkdir(parents=True)
    command = checkout.python.with_name("flashpool")
    command.write_text(program)
    command.chmod(0o755)
    return checkout


def test_a_server_that_does_not_start_is_reported_with_its_output(tmp_path: Path) -> None:
    checkout = checkout_with("#!/bin/sh\necho cannot import it\nexit 3\n", tmp_path)
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(Unusable, match=r"(?s)abc123 Break it does not start: .*cannot import it"),
    ):
        Side(checkout, 1, stack)


ONE_ANSWER = f"""#!{sys.executable}
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    at = "http://127.0.0.1:%d" % server.getsockname()[1]
    print(f"live calls on {{at}}, 1 slot\\nstats: {{at}}/stats", flush=True)
    one, _ = server.accept()
    one.recv(1000)
    one.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
    one.close()
sys.exit("out of luck")
"""


def test_a_server_that_exits_early_is_reported_with_its_last_output(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        side = Side(checkout_with(ONE_ANSWER, tmp_path), 1, stack)
        side.server.process.wait(20)
        assert side.last_words().startswith("; the server of abc123 Break it has left with 1: ")
        assert side.last_words().endswith("out of luck\n")
