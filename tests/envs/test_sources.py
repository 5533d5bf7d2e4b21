"""Packages from repositories, URLs and directories, named or not; real uv, real git."""

import asyncio
import http.server
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import (
    Environments,
    RegistryUnreachable,
    SourceRefused,
    Spec,
    SpecRefused,
    operations,
)
from support import wants

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]

BACKEND = """
import base64, hashlib, os, zipfile
NAME = {name!r}
def build_wheel(folder, *a):
    stem = NAME + "-1.0"
    files = {{NAME + "/__init__.py": open(NAME + "/__init__.py").read()}}
    files[stem + ".dist-info/METADATA"] = (
        "Metadata-Version: 2.1\\nName: " + NAME + "\\nVersion: 1.0\\n"
        "Provides-Extra: more\\nRequires-Dist: alpha ; extra == 'more'\\n")
    files[stem + ".dist-info/WHEEL"] = (
        "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    files[stem + ".dist-info/RECORD"] = ""
    path = stem + "-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, path), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path
"""


def write_source(folder: Path, name: str, version: str) -> Path:
    """Write a package that builds itself without an index."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(f"version = {version!r}\n")
    (folder / "own.py").write_text(BACKEND.format(name=name))
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
    )
    return folder


class Repository:
    """A Git repository with the package `forge` at its top and `inner` in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._program = wants.program("git")
        write_source(folder, "forge", "one")
        write_source(folder / "sub", "inner", "one")
        self.git("init", "-q")
        self.commit()

    @property
    def url(self) -> str:
        return f"git+{self.folder.as_uri()}"

    def git(self, *argv: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run(
            [self._program, "-C", self.folder, *who, *argv], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", ".")
        self.git("commit", "-q", "--allow-empty", "-m", "more")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("", "forge"),
        ("#egg=forge", "forge"),
        ("@v1", "forge"),
        ("@v1#egg=forge", "forge"),
        ("#subdirectory=sub", "inner"),
        ("@v1#subdirectory=sub&egg=inner", "inner"),
        (" ; python_version > '3'  # here", "forge"),
    ],
)
def test_a_repository_needs_no_name(
    end: str, name: str, setup: Any, run: Run, version_in: VersionIn, repository: Repository
) -> None:
    repository.git("tag", "v1")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(Spec(requirements=(repository.url + end,))) as found:
                assert version_in(found.python, name) == "one"
            plain = end.partition(" ")[0].replace("#egg=forge", "").replace("&egg=inner", "")
            named = Spec(requirements=(f"{name} @ {repository.url}{plain}",))
            with await environments.acquire(named) as other:
                assert other.digest == found.digest

    run(main())


def test_extras_of_a_bare_repository_are_installed(
    setup: Any, run: Run, version_in: VersionIn, repository: Repository
) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            for bare in (f"{repository.url}[more]", f"{repository.url}#egg=forge[more]"):
                with await environments.acquire(Spec(requirements=(bare,))) as found:
                    assert version_in(found.python, "alpha") == "2.0"

    run(main())


def test_a_requirement_whose_marker_does_not_hold_is_not_fetched(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            spec = Spec(requirements=("git+file:///no/where ; python_version < '3'", "alpha"))
            with await environments.acquire(spec) as found:
                shown = await operations.show(environments, found.digest)
                assert shown.facts.lock == ("alpha==2.0",)

    run(main())


def test_a_bare_repository_is_identified_by_its_commit(
    setup: Any, run: Run, version_in: VersionIn, repository: Repository
) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            seen = []
            for version in ("two", "three"):
                write_source(repository.folder, "forge", version)
                head = await asyncio.to_thread(repository.commit)
                spec = Spec(requirements=(repository.url,), refresh=True)
                with await environments.acquire(spec) as found:
                    assert version_in(found.python, "forge") == version
                    shown = await operations.show(environments, found.digest)
                    assert shown.facts.lock == (f"forge @ {repository.url}@{head}",)
                    seen.append(found.digest)
            write_source(repository.folder, "forge", "four")
            await asyncio.to_thread(repository.commit)
            with await environments.acquire(Spec(requirements=(repository.url,))) as found:
                assert found.digest == seen[1]
            explained = await environments.explain(Spec(requirements=(repository.url,)))
            assert explained.digest not in seen
            assert {decision.name for decision in explained.decisions} == {"forge"}

    run(main())


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("form", ["forge @ {uri}", "{path}", "{uri}"])
def test_a_changed_directory_is_rebuilt(
    form: str, layered: bool, setup: Any, run: Run, version_in: VersionIn, tmp_path: Path
) -> None:
    """uv's own cache looks at pyproject.toml only; flashpool looks at every file."""
    if layered:
        setup.base.install("alpha")
    source = tmp_path / "forge"
    asked = form.format(uri=source.as_uri(), path=source)

    async def main() -> None:
        digests = set()
        for version in ("one", "two", "three"):
            write_source(source, "forge", version)
            async with Environments(setup.settings()) as environments:
                for refresh in (version == "two", False):
                    spec = Spec(requirements=(asked,), refresh=refresh)
                    with await environments.acquire(spec) as found:
                        assert version_in(found.python, "forge") == version
                        digests.add(found.digest)
        assert len(digests) == 3
        write_source(source, "forge", "one")
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(Spec(requirements=(asked,))) as found:
                assert version_in(found.python, "forge") == "one"
                assert (found.digest in digests, found.origin) == (True, "disk")

    run(main())


@pytest.mark.parametrize(
    ("end", "what", "advice"),
    [
        ("@nosuch", "has no branch, tag or commit 'nosuch'", "follows the @"),
        ("@" + "0" * 40, f"has no branch, tag or commit '{'0' * 40}'", "follows the @"),
        ("@0000000", "has no branch, tag or commit '0000000'", "follows the @"),
        ("#subdirectory=nosuch", "has no directory 'nosuch'", "#subdirectory="),
        ("/sub", "could not be cloned", "#subdirectory="),
    ],
)
def test_a_repository_without_the_requested_package_is_an_error(
    end: str, what: str, advice: str, setup: Any, run: Run, repository: Repository
) -> None:
    async def main(asked: str) -> None:
        async with Environments(setup.settings()) as environments:
            await environments.acquire(Spec(requirements=(asked,)))

    for asked in (repository.url + end, f"forge @ {repository.url}{end}"):
        with pytest.raises(SourceRefused, match=what) as caught:
            run(main(asked))
        assert advice in caught.value.advice
        assert repository.url in caught.value.requirement


def test_a_wrong_name_for_a_source_is_an_error(
    setup: Any, run: Run, repository: Repository
) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.acquire(Spec(requirements=(f"wrong @ {repository.url}",)))

    with pytest.raises(SpecRefused, match="The package is 'forge', not 'wrong'") as caught:
        run(main())
    assert "write `forge @ " in caught.value.advice


def test_a_directory_that_is_not_a_project_is_an_error(
    setup: Any, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.acquire(Spec(requirements=(str(tmp_path / "data"),)))

    with pytest.raises(SourceRefused, match="contains no Python project") as caught:
        run(main())
    assert "pyproject.toml" in caught.value.advice


# -- over HTTP ----------------------------------------------------------------------------------


class Answering(http.server.SimpleHTTPRequestHandler):
    """Serves files of a directory; paths under `/503/` get that status."""

    def send_head(self) -> Any:
        first = self.path.split("/")[1]
        if first.isdigit():
            self.send_error(int(first))
            return None
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(setup: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that has the index's wheels as plain files."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")

    def handler(*argv: Any) -> Answering:
        return Answering(*argv, directory=str(setup.base.index.folder))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def failing(setup: Any, run: Run, *requirements: str) -> Any:
    async def main() -> None:
        async with Environments(setup.settings(find_links=())) as environments:
            await environments.acquire(Spec(requirements=requirements))

    with pytest.raises(Exception) as caught:
        run(main())
    return caught.value


def test_a_wheel_can_be_given_by_url(
    setup: Any, run: Run, version_in: VersionIn, site: str
) -> None:
    wheel = "alpha-1.0-py3-none-any.whl"

    async def main() -> None:
        async with Environments(setup.settings(find_links=())) as environments:
            for asked in (f"{site}/{wheel}", f"alpha @ {site}/{wheel}"):
                with await environments.acquire(Spec(requirements=(asked,))) as found:
                    assert version_in(found.python, "alpha") == "1.0"

    run(main())


@pytest.mark.parametrize("name", ["", "alpha @ "])
def test_a_missing_file_at_a_url_is_an_error(name: str, setup: Any, run: Run, site: str) -> None:
    for file in ("alpha-9-py3-none-any.whl", "alpha-9.tar.gz"):
        failure = failing(setup, run, f"{name}{site}/{file}")
        assert isinstance(failure, SourceRefused)
        assert failure.what == f"There is nothing at {site}/{file} (HTTP 404)"
        assert failure.advice == "correct the URL"
        assert f"{site}/{file}" in failure.requirement
        assert not failure.retryable


def test_a_url_that_needs_credentials_is_an_error(setup: Any, run: Run, site: str) -> None:
    for code in (401, 403):
        failure = failing(setup, run, f"{site}/{code}/alpha-1.0-py3-none-any.whl")
        assert isinstance(failure, SourceRefused)
        assert f"(HTTP {code})" in failure.what
        assert "credentials" in failure.advice


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_of_a_url_is_retryable(code: int, setup: Any, run: Run, site: str) -> None:
    failure = failing(setup, run, f"{site}/{code}/alpha-1.0-py3-none-any.whl")
    assert isinstance(failure, RegistryUnreachable)
    assert failure.retryable
    assert f"{site}/{code}/alpha-1.0-py3-none-any.whl could not be fetched" in failure.what
    assert "index" not in failure.what + failure.advice


def test_a_file_that_an_index_lists_but_lacks_is_an_error(
    setup: Any, run: Run, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = setup.base.index.folder / "simple" / "alpha"
    folder.mkdir(parents=True)
    link = "alpha-7.0-py3-none-any.whl"
    (folder / "index.html").write_text(f'<a href="/gone/{link}">{link}</a>')
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{site}/simple")
    failure = failing(setup, run, "alpha")
    assert isinstance(failure, SourceRefused)
    assert f"{site}/gone/{link}" in failure.what
    assert "another version" in failure.advice
    assert "has no package 'gamma'" in failing(setup, run, "gamma").what


def test_a_url_of_neither_a_package_nor_a_repository_is_an_error(
    setup: Any, run: Run, site: str
) -> None:
    for asked in (f"{site}/thing", f"thing @ {site}/thing"):
        failure = failing(setup, run, asked)
        assert isinstance(failure, SpecRefused)
        assert "source archive" in failure.advice
    failure = failing(setup, run, "https://github.com/psf/requests")
    assert isinstance(failure, SpecRefused)
    assert "`git+`" in failure.advice


def test_a_missing_repository_is_an_error(setup: Any, run: Run, site: str) -> None:
    wants.program("git")
    for end, words in (("thing.git", "not found"), ("401/thing.git", "may not be read")):
        failure = failing(setup, run, f"git+{site}/{end}")
        assert isinstance(failure, SourceRefused)
        assert f"{site}/{end}" in failure.what
        assert words in failure.what
    busy = failing(setup, run, f"git+{site}/503/thing.git")
    assert isinstance(busy, RegistryUnreachable)


def test_an_unreachable_host_is_an_error(setup: Any, run: Run) -> None:
    wants.program("git")
    failure = failing(setup, run, "git+https://me:secret@nosuch.invalid/thing.git")
    assert isinstance(failure, RegistryUnreachable)
    assert failure.retryable
    assert "nosuch.invalid/thing.git could not be reached" in failure.what
    assert "URL's host" in failure.advice
    assert "index" not in failure.what + failure.advice
    assert "secret" not in str(failure)
