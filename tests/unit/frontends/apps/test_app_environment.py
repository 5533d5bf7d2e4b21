from pathlib import Path

import pytest

from flashpool.frontends.apps.app_environment import (
    brought_packages,
    client_version,
    requirements_beside,
    wanted_environment,
)
from flashpool.frontends.apps.errors import ManifestRefused


def client(folder: Path, source: str = '__version__ = "1.21.0"\n') -> Path:
    (folder / "runpod_flash").mkdir(parents=True)
    (folder / "runpod_flash" / "__init__.py").write_text(source)
    return folder


@pytest.mark.parametrize(
    ("source", "version"),
    [
        ('"""Doc."""\nimport os\n__version__ = "1.21.0"  # x-release\n', "1.21.0"),
        ('__version__: str = "1.21.0"', "1.21.0"),
        ('name = "runpod"\n', ""),
        ("__version__ = make()", ""),
        ("__version__ = 5", ""),
        ('__version__ = "1; rm -rf"', ""),
        ("__version__ = (", ""),
        ("\0", ""),
    ],
)
def test_the_bundled_client_states_its_version(tmp_path: Path, source: str, version: str) -> None:
    assert client_version(client(tmp_path, source)) == version


def test_without_a_client_there_is_no_version(tmp_path: Path) -> None:
    assert client_version(tmp_path) == ""
    with pytest.raises(ManifestRefused, match="states no __version__"):
        wanted_environment(tmp_path, "3.12", ())


def test_packages_in_the_artifact_are_found_by_their_metadata() -> None:
    names = [
        *("numpy", "numpy-2.1.0.dist-info", "Flask_Login-0.6.3.dist-info", "x.dist-info"),
        *("torch-2.5.1+cu121.dist-info", "odd-latest.dist-info", "a-b-1.0.dist-info", "bin"),
    ]
    assert brought_packages(names) == {"numpy": "2.1.0", "flask-login": "0.6.3", "torch": "2.5.1"}


def test_an_artifact_without_packages_requires_the_clients_packages(tmp_path: Path) -> None:
    found = wanted_environment(client(tmp_path), "3.12", ("torch==2.5.1",))
    assert found.python == "3.12"
    assert found.requirements == (
        "runpod-flash==1.21.0",
        "runpod<2",
        "python-multipart",
        "torch==2.5.1",
    )
    assert found.constraints == ()
    assert found.brought == frozenset()


def test_packages_in_the_artifact_are_constraints_not_requirements(tmp_path: Path) -> None:
    client(tmp_path)
    for name in ("pydantic-2.5.3", "runpod-1.10.0", "python_multipart-0.0.9"):
        (tmp_path / f"{name}.dist-info").mkdir()
    found = wanted_environment(tmp_path, "", ("Pydantic>=2", "httpx"))
    assert found.requirements == ("runpod-flash==1.21.0", "httpx")
    assert found.constraints == (
        "pydantic==2.5.3",
        "python-multipart==0.0.9",
        "runpod==1.10.0",
    )
    assert found.brought == {"pydantic", "python-multipart", "runpod"}


def test_further_requirements_are_passed_on_unchanged() -> None:
    further = ("x @ https://example.org/x.whl", "not a requirement", "torch", "torch")
    assert requirements_beside({}, "1.0", further)[-3:] == further[:3]
