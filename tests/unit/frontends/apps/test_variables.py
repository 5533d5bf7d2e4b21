"""Which of the server's variables an app gets."""

from pathlib import Path

import pytest

from flashpool.frontends.apps.variables import app_variables
from flashpool.frontends.settings.table import Settings

ENVIRON = {
    "PATH": "/bin",
    "OF_THE_USER": "declared",
    "RUNPOD_API_KEY": "key",
    "RUNPOD_AI_API_KEY": "platform",
    "RUNPOD_WEBHOOK_GET_JOB": "http://x",
    "RUNPOD_ENDPOINT_BASE_URL": "http://y",
    "FLASHPOOL_TOKEN": "token",
    "FLASH_APP": "demo",
    "FLASH_RESOURCE_NAME": "another",
}
NEVER = {"RUNPOD_AI_API_KEY", "RUNPOD_WEBHOOK_GET_JOB", "FLASHPOOL_TOKEN"}


def given(*, deployed: bool, manifest: Path | None = None, **more: str) -> dict[str, str]:
    environ = {**ENVIRON, **more}
    settings = Settings.from_environ(environ)
    return app_variables(environ, settings, "shop", deployed=deployed, manifest=manifest)


def test_an_endpoint_has_what_the_user_declared() -> None:
    found = given(deployed=True)
    assert found["OF_THE_USER"] == "declared"
    assert found["RUNPOD_API_KEY"] == "key"
    assert found["RUNPOD_ENDPOINT_BASE_URL"] == "http://y"
    assert found["FLASH_RESOURCE_NAME"] == "shop"
    assert not NEVER & found.keys()


def test_by_hand_it_has_what_calls_have_and_what_the_client_looks_at() -> None:
    found = given(deployed=False)
    assert "OF_THE_USER" not in found
    assert (found["PATH"], found["FLASH_APP"], found["RUNPOD_API_KEY"]) == ("/bin", "demo", "key")
    assert not NEVER & found.keys()


def test_what_the_operator_chose_goes_before_all() -> None:
    found = given(deployed=True, FLASHPOOL_PASS_ENV="ANOTHER", ANOTHER="x")
    assert found["ANOTHER"] == "x"
    assert "OF_THE_USER" not in found
    assert found["FLASH_APP"] == "demo"


@pytest.mark.parametrize("name", ["RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID"])
def test_the_client_knows_that_it_is_deployed(name: str) -> None:
    assert given(deployed=True)["RUNPOD_ENDPOINT_ID"] == "local"
    found = given(deployed=True, **{name: "there"})
    assert found[name] == "there"
    assert found.get("RUNPOD_ENDPOINT_ID") != "local"


def test_the_manifest_with_addresses_is_named() -> None:
    assert "FLASH_MANIFEST_PATH" not in given(deployed=True)
    found = given(deployed=True, manifest=Path("/a/m.json"), FLASH_MANIFEST_PATH="/b")
    assert found["FLASH_MANIFEST_PATH"] == "/a/m.json"
