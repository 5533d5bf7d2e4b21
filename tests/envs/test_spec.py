"""Normalisation: what does not matter, what is refused, and with which words."""

from pathlib import Path

import pytest

from flashpool.envs import Spec, SpecRefused
from flashpool.envs.settings import REFERENCE_KINDS
from flashpool.envs.spec import NormalSpec, normalise


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
def test_spelling_does_not_matter(left: list[str], right: list[str]) -> None:
    assert normal(*left) == normal(*right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["numpy"], ["numpy>=1"]),
        (["numpy[x]"], ["numpy"]),
        (["x; python_version>'3'"], ["x"]),
    ],
)
def test_meaning_does_matter(left: list[str], right: list[str]) -> None:
    assert normal(*left) != normal(*right)


def test_duplicates_with_other_markers_stay_apart() -> None:
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
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(SpecRefused) as caught:
        normal(text)
    assert caught.value.phase == "spec"


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(SpecRefused, match="is an option, not a requirement") as caught:
        normal("-r requirements.txt")
    assert "index settings belong to the server" in str(caught.value)


def test_references_outside_the_policy_say_so() -> None:
    spec = Spec(requirements=("x @ git+https://example.org/x.git",))
    with pytest.raises(SpecRefused, match=r"kind 'vcs'.*allowed: url"):
        normalise(spec, references=frozenset({"url"}))


def test_local_files_count_by_content(tmp_path: Path) -> None:
    wheel = tmp_path / "alpha-1.0-py3-none-any.whl"
    wheel.write_bytes(b"one")
    first = normal(str(wheel))
    assert first.lines == (f"alpha @ {wheel.as_uri()}",)
    wheel.write_bytes(b"two")
    assert normal(str(wheel)).requirements[0].identity != first.requirements[0].identity
    moved = wheel.rename(tmp_path / "alpha-1.0-1-py3-none-any.whl")
    moved.write_bytes(b"one")
    assert normal(str(moved)).requirements[0].identity == first.requirements[0].identity


def test_directories_need_a_name(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(SpecRefused, match="does not tell"):
        normal(str(tmp_path))
    assert normal(f"thing @ {tmp_path.as_uri()}").requirements[0].direct


def test_python_versions() -> None:
    assert normal(python_version=" 3.12 ").python_version == "3.12"
    for bad in ("2.7", "3", "3.12; rm", "/bin/python"):
        with pytest.raises(SpecRefused):
            normal(python_version=bad)


def test_system_packages() -> None:
    spec = normal(system_packages=("libgl1", "curl", "curl ", ""))
    assert spec.system_packages == ("curl", "libgl1")
    for bad in ("--yes", "a b", "../x", "UPPER", "x;y"):
        with pytest.raises(SpecRefused):
            normal(system_packages=(bad,))


def test_too_many() -> None:
    with pytest.raises(SpecRefused, match="at most"):
        normal(*(f"p{n}" for n in range(501)))
