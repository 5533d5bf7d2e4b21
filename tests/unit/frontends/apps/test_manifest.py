import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashpool.frontends.apps.errors import ManifestRefused, ResourceRefused
from flashpool.frontends.apps.manifest import Manifest, read_manifest


def manifest(folder: Path, **top: Any) -> Manifest:
    (folder / "flash_manifest.json").write_text(json.dumps({"resources": {}, **top}))
    return read_manifest(folder)


def resource(folder: Path, **fields: Any) -> Any:
    return manifest(folder, resources={"shop": fields}).resource("shop")


def test_fields_of_all_levels_are_read(tmp_path: Path) -> None:
    found = manifest(
        tmp_path,
        version="1.0",
        python_version="3.12",
        project_name="shop",
        resources={
            "qb": {
                "resource_type": "CpuLiveServerless",
                "functions": [
                    {"name": "Counter", "module": "m", "is_class": True, "class_methods": ["up"]}
                ],
                "handler_file": "handler_qb.py",
                "max_concurrency": 3,
                "target_python_version": "3.11",
            },
            "lb": {"resource_type": "LiveLoadBalancer", "is_load_balanced": True},
            "client": {"client_mode": True, "functions": []},
        },
        routes={"lb": {"GET /a": "f", "post /b": "g"}},
        resources_endpoints={"qb": "https://x", "odd": 5},
    )
    assert (found.version, found.python_version, found.project_name) == ("1.0", "3.12", "shop")
    assert found.resources_endpoints == {"qb": "https://x"}
    qb = found.resource("qb")
    assert (qb.handler_file, qb.max_concurrency, qb.target_python_version) == (
        "handler_qb.py",
        3,
        "3.11",
    )
    assert qb.functions[0].methods == ("up",)
    assert qb.functions[0].is_class
    lb = found.resource("lb")
    assert lb.is_load_balanced
    assert [route.key for route in lb.routes] == ["GET /a", "post /b"]
    assert lb.handler_file == "handler_lb.py"
    assert found.resource("client").is_client


def test_missing_and_unknown_fields_are_tolerated(tmp_path: Path) -> None:
    found = resource(tmp_path, imageName=5, functions={"a": 1}, news=[1, {"x": None}])
    assert (found.max_concurrency, found.functions, found.routes) == (1, (), ())
    assert manifest(tmp_path, version=1.0, generated_at=5, routes=[]).version == ""
    assert resource(tmp_path, resource_type="CpuLiveLoadBalancer").is_load_balanced
    assert resource(tmp_path, functions=[5, {"name": 7}]).functions[1].name == ""


def test_without_routes_those_of_the_functions_are_used(tmp_path: Path) -> None:
    functions = [{"name": "f", "http_method": "GET", "http_path": "/a"}, {"name": "g"}]
    assert [route.key for route in resource(tmp_path, functions=functions).routes] == ["GET /a"]


def test_a_duplicate_route_is_kept(tmp_path: Path) -> None:
    (tmp_path / "flash_manifest.json").write_text(
        '{"resources": {"shop": {}}, "routes": {"shop": {"POST /a": "f", "POST /a": "g"}}}'
    )
    routes = read_manifest(tmp_path).resource("shop").routes
    assert [(route.method, route.path) for route in routes] == [("POST", "/a"), ("POST", "/a")]


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("max_concurrency", "four", "a whole number from 1"),
        ("max_concurrency", 0, "a whole number from 1"),
        ("max_concurrency", True, "a whole number from 1"),
        ("max_concurrency", 2.5, "a whole number from 1"),
        ("max_concurrency", 10**400, "a whole number from 1"),
        ("is_load_balanced", "yes", "true or false"),
        ("client_mode", 1, "true or false"),
        ("handler_file", ["handler.py"], "text"),
        ("handler_file", "../handler.py", "the name of a file"),
        ("handler_file", "/etc/handler.py", "the name of a file"),
        ("handler_file", "..", "the name of a file"),
        ("target_python_version", 3.12, "text"),
        ("target_python_version", "three", "a version such as 3.12"),
        ("target_python_version", "2.7", "a version such as 3.12"),
    ],
)
def test_fields_that_flashpool_uses_are_checked(
    tmp_path: Path, field: str, value: Any, right: str
) -> None:
    with pytest.raises(ManifestRefused) as caught:
        resource(tmp_path, **{field: value})
    assert str(caught.value).startswith(f"resource 'shop': {field} is {repr(value)[:20]}")
    assert f"should be {right}" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_mistakes_in_other_resources_are_ignored(tmp_path: Path) -> None:
    found = manifest(tmp_path, resources={"shop": {}, "odd": {"max_concurrency": "x"}, "5": 5})
    assert found.resource("shop").name == "shop"
    with pytest.raises(ManifestRefused, match="max_concurrency"):
        found.resource("odd")
    with pytest.raises(ManifestRefused, match="'5' is a int and should be an object"):
        found.resource("5")


def test_the_apps_python_is_checked(tmp_path: Path) -> None:
    found = manifest(tmp_path, python_version="latest", resources={"shop": {}})
    with pytest.raises(ManifestRefused, match="python_version is 'latest'"):
        found.resource("shop")


@pytest.mark.parametrize("name", ["", "none", "../shop", "a/b", "shop\0"])
def test_an_unknown_resource_is_reported_with_those_that_exist(tmp_path: Path, name: str) -> None:
    with pytest.raises(ResourceRefused, match="the resources there are: other, shop") as caught:
        manifest(tmp_path, resources={"shop": {}, "other": {}}).resource(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[]", "is a list and should be an object"),
        (b"null", "is missing and should be an object"),
        (b"{}", "'resources' is missing and should be an object"),
        (b'{"resources": []}', "'resources' is a list and should be an object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b" " * (17 << 20), "17825792 bytes, and 16777216 are the most"),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "flash_manifest.json"
    path.write_bytes(content)
    with pytest.raises(ManifestRefused) as caught:
        read_manifest(tmp_path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_manifest_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestRefused, match=r"contains no flash_manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "runpod_manifest.json").write_text("{}")
    with pytest.raises(ManifestRefused, match="built for the format of runpod 2") as caught:
        read_manifest(tmp_path)
    assert "runpod-flash 1.x" in str(caught.value)
    (tmp_path / "flash_manifest.json").mkdir()
    with pytest.raises(ManifestRefused, match="cannot be read"):
        read_manifest(tmp_path)


_FIELDS = st.sampled_from(
    [
        *("resource_type", "functions", "handler_file", "is_load_balanced", "client_mode"),
        *("max_concurrency", "target_python_version", "name", "class_methods", "http_method"),
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_FIELDS | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_JSON, _JSON, _JSON)
def test_any_json_in_a_manifest_is_read_or_refused(
    tmp_path: Path, entry: Any, routes: Any, python: Any
) -> None:
    top = {"resources": {"shop": entry}, "routes": {"shop": routes}, "python_version": python}
    with suppress(ManifestRefused):
        found = manifest(tmp_path, **top).resource("shop")
        assert found.max_concurrency >= 1
        assert "/" not in found.handler_file
