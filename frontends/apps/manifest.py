"""`flash_manifest.json`, as the 1.x client writes it: one frozen dataclass for each level.

    Manifest -- resources --> Resource -- functions --> ManifestFunction
            `-- routes of a resource -> DeclaredRoute

The reader is tolerant: missing fields are empty, unknown fields are ignored, and fields that the
client is known to get wrong decide nothing (``is_async`` is true for every queue function,
``imageName`` names another Python). Fields that decide something are checked only for the resource
that is served (`Resource.check`), so an error in another resource is harmless.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flashpool.envs.resolving.spec import is_python_version

from .errors import ManifestRefused, ResourceRefused
from .regular_files import read_regular

__all__ = ["NAME", "DeclaredRoute", "Manifest", "ManifestFunction", "Resource", "read_manifest"]

NAME: Final = "flash_manifest.json"
#: Manifest of the pre-releases of the client's second generation.
OTHER_NAME: Final = "runpod_manifest.json"
_MOST_BYTES: Final = 16 << 20
_MOST_CONCURRENCY: Final = 1_000_000
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFunction:
    """A function or class of a resource."""

    name: str
    module: str
    is_class: bool
    methods: tuple[str, ...]
    http_method: str
    http_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredRoute:
    """A route of a load-balanced resource, as the manifest declares it, unchecked."""

    method: str
    path: str
    function: str

    @property
    def key(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One endpoint of the app."""

    name: str
    resource_type: str
    is_load_balanced: bool
    is_client: bool
    handler_file: str
    target_python_version: str
    max_concurrency: int
    functions: tuple[ManifestFunction, ...]
    routes: tuple[DeclaredRoute, ...]
    #: Errors in fields that decide something; see `check`.
    problems: tuple[str, ...]

    def check(self) -> None:
        """Raise `ManifestRefused` with everything that is wrong with this resource."""
        if self.problems:
            raise ManifestRefused("; ".join(self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole file."""

    path: str
    version: str
    python_version: str
    generated_at: str
    project_name: str
    resources: dict[str, Resource]
    #: Resource -> URL; artifacts lack this, the platform fills it in.
    resources_endpoints: dict[str, str]
    problems: tuple[str, ...] = field(default=())

    def resource(self, name: str) -> Resource:
        """Return the resource of that name, after checking it.

        Raises:
            ResourceRefused: the manifest lacks it; the message lists the resources it has.
            ManifestRefused: a field that decides something is invalid.
        """
        found = self.resources.get(name)
        if found is None:
            there = ", ".join(sorted(self.resources)) or "none"
            raise ResourceRefused(
                f"resource {name!r} (FLASH_RESOURCE_NAME) is not in {self.path}; "
                f"the resources there are: {there}"
            )
        found.check()
        if self.problems:
            raise ManifestRefused("; ".join(self.problems))
        return found


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys appeared twice."""

    __slots__ = ("twice",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = tuple(_repeated(key for key, _ in pairs)) if len(self) < len(pairs) else ()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of an unpacked app; blocking.

    Raises:
        ManifestRefused: the message has the path and the reason.
    """
    path = folder / NAME
    try:
        text = read_regular(path, _MOST_BYTES)
    except FileNotFoundError:
        raise ManifestRefused(_missing(folder)) from None
    except OSError as error:
        raise ManifestRefused(f"manifest {path} cannot be read: {error.strerror}") from None
    try:
        value = json.loads(text, object_pairs_hook=_Object)
    except RecursionError:
        raise ManifestRefused(f"manifest {path} is nested too deeply") from None
    except ValueError as error:
        raise ManifestRefused(f"manifest {path} is not JSON: {error}") from None
    if not isinstance(value, _Object):
        raise ManifestRefused(f"manifest {path} is {_kind(value)} and should be an object")
    return _manifest(str(path), value)


def _missing(folder: Path) -> str:
    if (folder / OTHER_NAME).is_file():
        return (
            f"{folder} holds {OTHER_NAME} and no {NAME}: it was built for the format of runpod 2, "
            "which this version of flashpool does not serve; build it with `flash build` of runpod-flash 1.x"
        )
    return f"{folder} contains no {NAME}: it was not built by `flash build`"


def _manifest(path: str, value: _Object) -> Manifest:
    resources = value.get("resources")
    if not isinstance(resources, _Object):
        raise ManifestRefused(
            f"manifest {path}: 'resources' is {_kind(resources)} and should be an object"
        )
    routes = _object(value.get("routes"))
    read = _Fields(f"manifest {path}", value)
    python = read.python("python_version")
    return Manifest(
        path=path,
        version=read.text("version"),
        python_version=python,
        generated_at=read.text("generated_at"),
        project_name=read.text("project_name"),
        resources={
            name: _resource(name, entry, _object(routes.get(name)))
            for name, entry in resources.items()
        },
        resources_endpoints={
            name: url
            for name, url in _object(value.get("resources_endpoints")).items()
            if isinstance(url, str)
        },
        problems=tuple(read.problems),
    )


def _resource(name: str, value: Any, routes: _Object) -> Resource:
    entry = _object(value)
    read = _Fields(f"resource {name!r}", entry)
    if entry is not value:
        read.problems.append(f"resource {name!r} is {_kind(value)} and should be an object")
    functions = tuple(_function(_object(each)) for each in _list(entry.get("functions")))
    kind = read.text("resource_type")
    handler = read.decisive_text("handler_file")
    if handler and (handler in {".", ".."} or "/" in handler or "\0" in handler):
        read.wrong("handler_file", "the name of a file beside the manifest")
    return Resource(
        name=name,
        resource_type=kind,
        is_load_balanced=read.boolean("is_load_balanced", "LoadBalancer" in kind),
        is_client=read.boolean("client_mode", False),
        handler_file=handler or f"handler_{name}.py",
        target_python_version=read.python("target_python_version"),
        max_concurrency=read.number("max_concurrency", 1, _MOST_CONCURRENCY),
        functions=functions,
        routes=tuple(_declared(routes, functions)),
        problems=tuple(read.problems),
    )


def _function(entry: _Object) -> ManifestFunction:
    read = _Fields("", entry)
    methods = _list(entry.get("class_methods"))
    return ManifestFunction(
        name=read.text("name"),
        module=read.text("module"),
        is_class=read.boolean("is_class", False),
        methods=tuple(name for name in methods if isinstance(name, str)),
        http_method=read.text("http_method"),
        http_path=read.text("http_path"),
    )


def _declared(routes: _Object, functions: Iterable[ManifestFunction]) -> list[DeclaredRoute]:
    """Return the routes in `routes`, including duplicates; else those of the functions."""
    found = [
        DeclaredRoute(method=method, path=path.strip(), function=str(name))
        for key, name in [*routes.items(), *((key, routes[key]) for key in routes.twice)]
        for method, _, path in [key.strip().partition(" ")]
    ]
    if found:
        return found
    return [
        DeclaredRoute(method=each.http_method, path=each.http_path, function=each.name)
        for each in functions
        if each.http_method or each.http_path
    ]


class _Fields:
    """Reads the fields of one object, and collects their errors."""

    def __init__(self, whose: str, entry: _Object) -> None:
        self._whose = whose
        self._entry = entry
        self.problems: list[str] = []

    def wrong(self, name: str, right: str) -> None:
        shown = repr(self._entry.get(name))
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        self.problems.append(f"{self._whose}: {name} is {shown} and should be {right}")

    def text(self, name: str) -> str:
        """Return the text of a field that decides nothing; empty if the value is not text."""
        value = self._entry.get(name)
        return value if isinstance(value, str) else ""

    def decisive_text(self, name: str) -> str:
        value = self._entry.get(name)
        if value is None or isinstance(value, str):
            return value or ""
        self.wrong(name, "text")
        return ""

    def boolean(self, name: str, default: bool) -> bool:
        value = self._entry.get(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.wrong(name, "true or false")
        return default

    def python(self, name: str) -> str:
        value = self.decisive_text(name).strip()
        if value and not is_python_version(value):
            self.wrong(name, "a version such as 3.12")
            return ""
        return value

    def number(self, name: str, default: int, most: int) -> int:
        value = self._entry.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self.wrong(name, f"a whole number from 1 to {most}")
            return default
        return value


def _object(value: Any) -> _Object:
    return value if isinstance(value, _Object) else _Object([])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _kind(value: Any) -> str:
    names = {type(None): "missing", _Object: "an object", list: "a list", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")
