"""`flashpool serve auto`: which front-end, by manifest and variables."""

import pytest

from flashpool.frontends.apps.contract import AnswerForm
from flashpool.frontends.auto import FrontEnd, choose, decide
from flashpool.frontends.modes import ModeError
from flashpool.frontends.settings.table import Settings

QUEUE, BALANCED = FrontEnd.QUEUE, FrontEnd.BALANCED


@pytest.mark.parametrize(
    ("answer", "environ", "expected"),
    [
        (AnswerForm.JOB, {"FLASH_ENDPOINT_TYPE": "lb", "RUNPOD_RUNTIME_KIND": "api"}, QUEUE),
        (AnswerForm.HTTP, {"RUNPOD_RUNTIME_KIND": "queue"}, BALANCED),
        (None, {"FLASH_ENDPOINT_TYPE": "lb", "RUNPOD_RUNTIME_KIND": "queue"}, BALANCED),
        (None, {"RUNPOD_RUNTIME_KIND": "queue"}, QUEUE),
        (None, {"RUNPOD_RUNTIME_KIND": "api", "RUNPOD_WEBHOOK_GET_JOB": "x"}, BALANCED),
        (None, {"RUNPOD_WEBHOOK_GET_JOB": "x"}, QUEUE),
        (None, {"RUNPOD_WEBHOOK_GET_JOB": "", "FLASH_ENDPOINT_TYPE": ""}, BALANCED),
        (None, {}, BALANCED),
    ],
)
def test_the_manifest_comes_first_then_the_variables(answer, environ, expected):
    assert decide(answer, environ) is expected


@pytest.mark.parametrize(
    "environ", [{"FLASH_ENDPOINT_TYPE": "qb"}, {"RUNPOD_RUNTIME_KIND": "other"}]
)
def test_unknown_values_are_refused(environ):
    with pytest.raises(ModeError, match=next(iter(environ))):
        decide(None, environ)


def test_a_pod_listens_on_port_80_by_default():
    for environ, port in (
        ({"RUNPOD_POD_ID": "p"}, "80"),
        ({"RUNPOD_POD_ID": "p", "PORT": "8080"}, "8080"),
        ({}, None),
    ):
        choose(Settings.from_environ({}), environ)
        assert environ.get("PORT") == port


def test_a_named_resource_without_its_artifact_is_not_served(tmp_path):
    from flashpool.frontends.apps.errors import AppError

    settings = Settings.from_environ(
        {"FLASHPOOL_ARTIFACT": str(tmp_path / "none.tar.gz"), "FLASHPOOL_ARTIFACT_WAIT_S": "0"}
    )
    for name in ("FLASH_RESOURCE_NAME", "RUNPOD_RESOURCE_NAME"):
        with pytest.raises(AppError, match=r"none\.tar\.gz"):
            choose(settings, {name: "shop", "RUNPOD_WEBHOOK_GET_JOB": "x"})
        # The front-end of that kind waits for the artifact, and serves nothing else meanwhile.
        assert choose(settings, {name: "shop", "RUNPOD_RUNTIME_KIND": "api"}) is BALANCED
        assert choose(settings, {name: "shop", "RUNPOD_RUNTIME_KIND": "queue"}) is QUEUE
        assert choose(settings, {name: "shop", "FLASH_ENDPOINT_TYPE": "lb"}) is BALANCED


def test_the_manifest_of_a_real_artifact_decides(shop_artifact, tmp_path):
    settings = Settings.from_environ(
        {"FLASHPOOL_ARTIFACT": str(shop_artifact), "FLASHPOOL_LOCAL_DIR": str(tmp_path / "local"),
         "FLASHPOOL_APP_DIR": str(tmp_path / "app")}
    )  # fmt: skip
    environ = {"FLASH_RESOURCE_NAME": "counter", "FLASH_ENDPOINT_TYPE": "lb"}
    assert choose(settings, environ) is QUEUE
    assert "FLASH_ENDPOINT_TYPE" not in environ
    assert choose(settings, {"FLASH_RESOURCE_NAME": "shop"}) is BALANCED
