"""Which mode the variables of an endpoint select, and what is refused."""

import pytest

from flashpool.frontends import modes


@pytest.mark.parametrize("name", ["FLASH_RESOURCE_NAME", "RUNPOD_RESOURCE_NAME"])
def test_a_named_resource_is_deployed_whatever_else_is_set(name: str) -> None:
    for value in ("x", " ", "0", "no"):
        assert modes.of_queue({name: value}) is modes.Mode.DEPLOYED_QUEUE
        for kind in ({}, {"FLASH_ENDPOINT_TYPE": ""}, {"FLASH_ENDPOINT_TYPE": "lb"}):
            assert modes.of_balanced({name: value, **kind}) is modes.Mode.DEPLOYED_BALANCED
    assert modes.of_queue({name: ""}) is modes.Mode.LIVE_QUEUE
    assert modes.of_balanced({name: "", "FLASH_ENDPOINT_TYPE": ""}) is modes.Mode.LIVE_BALANCED


def test_without_variables_the_mode_is_live() -> None:
    assert modes.of_queue({}) is modes.Mode.LIVE_QUEUE
    assert modes.of_balanced({}) is modes.Mode.LIVE_BALANCED


@pytest.mark.parametrize("kind", ["lb", "other", " lb"])
@pytest.mark.parametrize("resource", [{}, {"FLASH_RESOURCE_NAME": "x"}], ids=["alone", "named"])
def test_an_endpoint_type_is_never_live(kind: str, resource: dict[str, str]) -> None:
    environ = {"FLASH_ENDPOINT_TYPE": kind, **resource}
    if kind == "lb" and resource:
        with pytest.raises(modes.ModeError, match="load-balanced image"):
            modes.of_queue(environ)
    else:
        with pytest.raises(modes.ModeError, match="unset"):
            modes.of_balanced(environ)


def test_either_variable_names_the_resource() -> None:
    assert modes.resource({}) == ""
    assert modes.resource({"FLASH_RESOURCE_NAME": "", "RUNPOD_RESOURCE_NAME": " x"}) == " x"
    assert modes.resource({"FLASH_RESOURCE_NAME": "a", "RUNPOD_RESOURCE_NAME": "b"}) == "a"
