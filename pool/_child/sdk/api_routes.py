"""``@app.api`` as an ASGI application: a class with routes, or the application of a factory.

    request --> path and query parameters that the method's signature names
            --> the JSON body, if any: the method's first other argument
            --> the method, on the loop or in a thread --> its result, encoded by FastAPI

RunPod's own worker passes only the body, and calls every method on the loop. The app's environment
has FastAPI, which comes with the SDK.
"""

from __future__ import annotations

import inspect
import json
from contextlib import asynccontextmanager
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from typing import Any

_BODIES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_TRUTHS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
#: Stands for a missing body; null is a body.
NOTHING: Any = object()


def application(handle: Any) -> Any:
    """Return the application of a handle; raise whatever user code raises."""
    if handle._asgi_factory is not None:
        return handle._asgi_factory()
    return _of_class(handle)


def _of_class(handle: Any) -> Any:
    fastapi = import_module("fastapi")
    instance = handle._cls()

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        if handle._init_name is not None:
            started = getattr(instance, handle._init_name)()
            if inspect.isawaitable(started):
                await started
        yield

    app = fastapi.FastAPI(lifespan=lifespan)
    for route in handle.spec.routes:
        method = getattr(instance, route.handler_name)
        app.add_route(route.path, _endpoint(method, route.method), methods=[route.method])
    return app


def _endpoint(method: Callable[..., Any], verb: str) -> Callable[..., Any]:
    wanted = RouteParameters(method)
    on_loop = inspect.iscoroutinefunction(method)
    refusal = import_module("fastapi").HTTPException
    in_thread = import_module("fastapi.concurrency").run_in_threadpool

    async def endpoint(request: Any) -> Any:
        try:
            body = await _body(request) if verb in _BODIES else NOTHING
            args, kwargs = wanted.arguments(request.path_params, request.query_params, body)
        except ValueError as error:
            raise refusal(422, str(error)) from None
        if on_loop:
            return _response(await method(*args, **kwargs))
        value = await in_thread(method, *args, **kwargs)
        return _response(await value if inspect.isawaitable(value) else value)

    return endpoint


async def _body(request: Any) -> Any:
    raw = await request.body()
    if not raw:
        return NOTHING
    try:
        return json.loads(raw)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from None


class RouteParameters:
    """The parameters of a method, and how a request fills them."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.parameters = dict(inspect.signature(method).parameters)
        try:
            self.types = inspect.get_annotations(getattr(method, "__func__", method), eval_str=True)
        except Exception:  # an annotation may contain an undefined name
            self.types = {}

    def arguments(
        self, path: Mapping[str, Any], query: Mapping[str, Any], body: Any
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments for a request.

        Raises:
            ValueError: a text cannot be converted to its parameter's type.
        """
        texts = {**dict(query), **path}
        named = {
            name: self.value(name, text) for name, text in texts.items() if name in self.parameters
        }
        if body is NOTHING:
            return [], named
        free = [one for name, one in self.parameters.items() if name not in named]
        if free and free[0].kind in (free[0].POSITIONAL_OR_KEYWORD, free[0].KEYWORD_ONLY):
            return [], {**named, free[0].name: body}
        return [body], named

    def value(self, name: str, text: Any) -> Any:
        """Convert a text to the type of its parameter."""
        kind = self.types.get(name)
        if not isinstance(text, str) or kind not in (int, float, bool):
            return text
        try:
            return _TRUTHS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise ValueError(f"{name}: expected {kind.__name__}, got {text[:40]!r}") from None


def _response(value: Any) -> Any:
    responses = import_module("fastapi.responses")
    if isinstance(value, responses.Response):
        return value
    return responses.JSONResponse(import_module("fastapi.encoders").jsonable_encoder(value))
