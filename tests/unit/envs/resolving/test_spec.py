"""Normalisation of specs: what makes no difference, what is refused, and with which messages."""

import os
from pathlib import Path

import pytest

from flashpool.envs import Spec, SpecRefused
from flashpool.envs.resolving import references
from flashpool.envs.resolving.spec import NormalSpec, normalise
from flashpool.envs.settings import REFERENCE_KINDS


def normal(*requirements: str, **rest: object) -> NormalSpec:
    spec = Spec(requirements=requirements, **rest)  # type: ignore[arg-type]
    return normalise(spec, references=REFERENCE_KINDS)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["numpy"], ["NumPy "]),
        (["numpy", "pandas"], ["pandas", "numpy"]),
        (["a.b_c"], ["A-B.C"]),
        (["numpy >= 1.26 , < 3"], ["numpy<3,>=1.26"]),
        (["uvicorn[Standard]"], ["uvicorn[standard]"]),
        (["requests[socks]", "requests>=2"], ["requests[socks]>=2"]),
        (["numpy", "numpy"], ["numpy"]),
        (["x; python_version>'3'"], ['x ; python_version > "3"']),
    ],
)
def test_spellings_of_one_spec_are_equal(left: list[str], right: list[str]) -> None:
    assert normal(*left) == normal(*right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["numpy"], ["numpy>=1"]),
        (["numpy[x]"], ["numpy"]),
        (["x; python_version>'3'"], ["x"]),
    ],
)
def test_different_specs_are_different(left: list[str], right: list[str]) -> None:
    assert normal(*left) != normal(*right)


def test_duplicates_with_different_markers_are_kept() -> None:
    lines = normal("x<1 ; python_version<'3.9'", "x>=1 ; python_version>='3.9'").lines
    assert len(lines) == 2


@pytest.mark.parametrize(
    "text",
    [
        "-r requirements.txt",
        "--index-url https://example.org",
        "-e .",
        "numpy --hash=sha256:00",
        "numpy\n--index-url x",
        "numpy\x00",
        "",
        "   ",
        "x" * 3000,
        "x @ https://example.org/${SECRET}.whl",
        "not a requirement",
        "numpy==",
        "./relative",
        "x @ ftp://example.org/x.whl",
        "x @ https://[bad/x.whl",
        "x @ hg+https://example.org/x",
        "x @ git+ext://sh -c whoami",
        "x @ git+foo://example.org/x",
        "x @ file:///a%00b.whl",
        "x @ file:///no/such/file.whl",
        "x @ /no/such/file.whl",
        "~nobody-of-this-name/x-1.0-py3-none-any.whl",
        "/no/such/x-1.0-py3-none-any.whl",
        "/not-a-wheel-name.whl",
        "x @ file://",
        "file://[x/a.whl",
        "x @ file:///dev/zero",
        "/dev/zero",
        "numpy; python_version",
        "numpy[",
        "n\u00fampy",
        "\ud800",
    ],
)
def test_invalid_requirements_are_refused_with_advice(text: str) -> None:
    """Each refusal has a reason and says what to do."""
    with pytest.raises(SpecRefused) as caught:
        normal(text)
    assert caught.value.phase == "spec"
    assert caught.value.advice
    assert "what to do:" in str(caught.value)


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(SpecRefused, match="is an option, not a requirement") as caught:
        normal("-r requirements.txt")
    assert "index settings belong to the server" in str(caught.value)


def test_references_outside_the_policy_say_so() -> None:
    spec = Spec(requirements=("x @ git+https://example.org/x.git",))
    with pytest.raises(SpecRefused, match=r"kind 'vcs'.*allowed: url"):
        normalise(spec, references=frozenset({"url"}))
    local = Spec(requirements=("x @ git+file:///srv/x.git",))
    with pytest.raises(SpecRefused, match="kind 'local'") as caught:
        normalise(local, references=frozenset({"url", "vcs"}))
    assert "FLASHPOOL_ENV_REFERENCES" in caught.value.advice


def test_local_files_are_identified_by_content(tmp_path: Path) -> None:
    wheel = tmp_path / "alpha-1.0-py3-none-any.whl"
    wheel.write_bytes(b"one")
    first = normal(str(wheel))
    assert first.lines == (f"alpha @ {wheel.as_uri()}",)
    wheel.write_bytes(b"two")
    assert normal(str(wheel)).requirements[0].identity != first.requirements[0].identity
    moved = wheel.rename(tmp_path / "alpha-1.0-1-py3-none-any.whl")
    moved.write_bytes(b"one")
    assert normal(str(moved)).requirements[0].identity == first.requirements[0].identity


def test_directories_beyond_the_limits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (tmp_path / f"{number}.py").write_text("x" * 100)
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / "pipe")
    text = f"x @ {tmp_path.as_uri()}"
    assert normal(text).requirements[0].direct
    monkeypatch.setattr(references, "MAX_LOCAL_BYTES", 99)
    with pytest.raises(SpecRefused, match="a file of more than"):
        normal(text)
    monkeypatch.setattr(references, "MAX_LOCAL_FILES", 19)
    with pytest.raises(SpecRefused, match="more than 19 files"):
        normal(text)


def test_a_local_directory_needs_no_name(tmp_path: Path) -> None:
    """Until uv reports its name, the directory is identified by its content."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (bare,) = normal(f"{tmp_path}[more]").requirements
    assert (bare.name, bare.direct) == ("", True)
    (named,) = normal(f"thing[more] @ {tmp_path.as_uri()}").requirements
    assert named == normal(f"thing[more] @ {tmp_path}").requirements[0]
    assert named.identity == f"thing{bare.identity}"


def test_build_products_do_not_count_as_content(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    before = normal(str(tmp_path))
    for made in ("build/lib", "thing.egg-info", "src/thing.egg-info", "pkg/__pycache__"):
        (tmp_path / made).mkdir(parents=True)
        (tmp_path / made / "file").touch()
        assert normal(str(tmp_path)) == before
    (tmp_path / "pkg/build").mkdir()
    (tmp_path / "pkg/build/source.py").touch()
    assert normal(str(tmp_path)) != before


@pytest.mark.parametrize(
    ("text", "line", "identity"),
    [
        ("git+https://x.org/a.git", "git+https://x.org/a.git", " @ git+https://x.org/a.git"),
        ("https://x.org/a.git", "git+https://x.org/a.git", " @ git+https://x.org/a.git"),
        ("https://x.org/a.git@v1", "git+https://x.org/a.git@v1", " @ git+https://x.org/a.git@v1"),
        ("git+https://x.org/a@v1#egg=a", "git+https://x.org/a@v1", " @ git+https://x.org/a@v1"),
        (
            "git+https://x.org/a#egg=a[more]&subdirectory=b",
            "git+https://x.org/a#subdirectory=b",
            "[more] @ git+https://x.org/a#subdirectory=b",
        ),
        (
            "git+https://x.org/a[More, less] ; python_version>'3'  # why",
            "git+https://x.org/a",
            '[less,more] @ git+https://x.org/a ; python_version > "3"',
        ),
        ("a @ git+https://x.org/a#egg=a", *["a @ git+https://x.org/a"] * 2),
        ("a @ https://x.org/a.git", *["a @ git+https://x.org/a.git"] * 2),
        (
            "https://x.org/a_b-1-py3-none-any.whl",
            *["a-b @ https://x.org/a_b-1-py3-none-any.whl"] * 2,
        ),
        (
            "https://x.org/a-1%2Bcu-py3-none-any.whl#sha256=0",
            *["a @ https://x.org/a-1%2Bcu-py3-none-any.whl#sha256=0"] * 2,
        ),
        ("https://x.org/a-1.tar.gz", "https://x.org/a-1.tar.gz", " @ https://x.org/a-1.tar.gz"),
        ("numpy  # for arrays", "numpy", "numpy"),
        ("numpy>=2 ; python_version>'3' # - why", *['numpy>=2; python_version > "3"'] * 2),
    ],
)
def test_forms_that_pip_and_uv_accept_are_accepted(text: str, line: str, identity: str) -> None:
    (found,) = normal(text).requirements
    assert (found.line, found.identity) == (line, identity)


def test_comment_lines_are_ignored() -> None:
    assert normal("# what the call imports", "numpy") == normal("numpy")
    with pytest.raises(SpecRefused, match="control character"):
        normal("# one\nnumpy")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("-e /srv/thing", "nothing in it can be edited"),
        ("--editable=/srv/thing", "nothing in it can be edited"),
        ("-r requirements.txt", "send its lines"),
        ("-c constraints.txt", "write the versions into the requirements"),
        ("--pre", "pre-release"),
        ("--extra-index-url https://x.org", "index settings belong to the server"),
        ("git@github.com:psf/requests.git", "`git+ssh://git@github.com/psf/requests.git`"),
        ("git+git@github.com:psf/requests", "`git+ssh://git@github.com/psf/requests`"),
        ("requests @ git@github.com:psf/requests", "`git+ssh://git@github.com/psf/requests`"),
        ("git://github.com/psf/requests", "`git+https://github.com/psf/requests`"),
        ("git+git://github.com/psf/requests", "`git+https://github.com/psf/requests`"),
        ("github.com/psf/requests", "`git+https://github.com/psf/requests`"),
        ("hg+https://x.org/a", "Git repositories only"),
        ("svn+ssh://x.org/a", "Git repositories only"),
        ("numpy=1.26", "`numpy==1.26`"),
        ("numpy=1.26.4=py312_0", "`numpy==1.26.4`"),
        ("numpy@1.26", "`numpy==1.26`"),
        ("numpy 1.26", "`numpy==1.26`"),
        ("numpy, pandas", "one package an item"),
        ("numpy pandas", "one package an item"),
        ("numpy>=1 pandas", "one package an item"),
        ("git+https://x.org/a ; python", "python_version"),
        ("./thing", "absolute path"),
    ],
)
def test_a_refusal_suggests_what_was_meant(text: str, advice: str) -> None:
    with pytest.raises(SpecRefused) as caught:
        normal(text)
    assert advice in caught.value.advice


def test_python_versions_are_checked() -> None:
    assert normal(python_version=" 3.12 ").python_version == "3.12"
    for bad in ("2.7", "3", "3.12; rm", "/bin/python", ">=3.12", "latest", "3.9", "3.9.18"):
        with pytest.raises(SpecRefused) as caught:
            normal(python_version=bad)
        assert caught.value.advice
    assert normal(python_version="3.10").python_version == "3.10"


def test_system_packages_are_checked() -> None:
    spec = normal(system_packages=("libgl1", "curl", "curl ", ""))
    assert spec.system_packages == ("curl", "libgl1")
    for bad in ("--yes", "a b", "../x", "UPPER", "x;y"):
        with pytest.raises(SpecRefused) as caught:
            normal(system_packages=(bad,))
        assert caught.value.advice


def test_too_many_requirements_are_refused() -> None:
    with pytest.raises(SpecRefused, match="at most"):
        normal(*(f"p{n}" for n in range(501)))
