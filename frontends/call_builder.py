"""Translates a request into a `Call` of the pool: packages, limits, and an instance.

FunctionRequest --> Spec | None, CallLimits, InstanceRequest --> Call
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from flashpool.envs import Spec
from flashpool.pool.calls import Call, CallLimits, Codec, InstanceRequest, Outcome
from flashpool.pool.scheduling.compile_ahead import SOURCE_LIMIT

from .changes import Sources
from .schema import FunctionRequest


class CallAdapter(Protocol):
    """Adapts calls to a generation of the client; `Service` knows no generation by name."""

    @property
    def ahead(self) -> Sequence[Spec]:
        """Environments that its calls are going to need; the server builds them when it starts."""

    def adapted(self, request: FunctionRequest, call: Call) -> Call:
        """Return the call, or a changed copy; used for calls whose source imports something."""

    def again(self, call: Call, outcome: Outcome) -> Call | None:
        """Return the call to run in place of one with this outcome; None: the outcome stands."""


def label_of(request: FunctionRequest) -> str:
    """Return the name of the request's call in logs and statistics."""
    return request.function_name or request.class_name or "call"


def spec_of(request: FunctionRequest) -> Spec | None:
    """Return the environment that the request needs; None: the base."""
    if not (request.dependencies or request.system_dependencies or request.python_version):
        return None
    return Spec(
        requirements=tuple(request.dependencies or ()),
        system_packages=tuple(request.system_dependencies or ()),
        python_version=request.python_version,
        refresh=bool(request.refresh),
    )


def trace_of(request: FunctionRequest) -> dict[str, str]:
    """Return the request's place in its caller's trace, from its headers."""
    if not request.traceparent:
        return {}
    return {"traceparent": request.traceparent, "tracestate": request.tracestate or ""}


class Defaults:
    """The values used for fields that a request leaves out."""

    def __init__(
        self, *, result_limit: int | None, concurrency: int, result_setting: str = ""
    ) -> None:
        self._limits = CallLimits(result_bytes=result_limit, result_setting=result_setting)
        #: Most calls of an instance's async methods that run at the same time.
        self._concurrency = concurrency
        self._sources = Sources()

    def call_of(
        self, request: FunctionRequest, body: bytes, stream: bool = False, request_id: str = ""
    ) -> Call:
        """Return the call that a request asks for."""
        key = _function_key(request)
        touches, imports = self._sources.known.get(key) or self._sources.read(request, key)
        if request.seed is not None:
            touches |= {"random"}
        if request.scratch:
            touches |= {"cwd", "env:TMPDIR"}
        return Call(
            codec=Codec.FLASH,
            body=body,
            label=label_of(request),
            request_id=request_id,
            function_key=key,
            source=_source(request),
            spec=spec_of(request),
            want=self._want(request, (key, request.gpus))
            if request.execution_type == "class"
            else None,
            limits=self._limits
            if request.timeout_s is request.soft_timeout_s is request.memory_mb is None
            else self._limits_of(request),
            gpus=request.gpus,
            touches=touches,
            imports=imports,
            seed=request.seed,
            scratch=bool(request.scratch),
            env=request.env or {},
            stream=stream,
            idempotent=bool(request.idempotent),
        )

    def _limits_of(self, request: FunctionRequest) -> CallLimits:
        return replace(
            self._limits,
            run_s=request.timeout_s,
            soft_s=request.soft_timeout_s,
            memory_mb=request.memory_mb,
        )

    def _want(self, request: FunctionRequest, code: object) -> InstanceRequest | None:
        """Return the instance of a method call; None for a call in a process of its own."""
        if request.isolation == "call":
            return None
        name = request.class_name or ""
        return InstanceRequest(
            instance=request.instance_id or f"{name}_{secrets.token_hex(8)}",
            class_name=name,
            code=code,
            arguments=_arguments_key(request),
            method=request.method_name or "__call__",
            concurrency=request.max_concurrency or self._concurrency,
            anew=bool(request.create_new_instance) and request.instance_id is not None,
            must_exist=bool(request.instance_must_exist),
            unnamed=request.instance_id is None,
        )


def _source(request: FunctionRequest) -> bytes:
    """Return the source to compile before the next call; empty for classes: instances stay."""
    code = request.function_code
    if request.execution_type != "function" or len(memoryview(code)) > SOURCE_LIMIT:
        return b""
    return bytes(code)


def _arguments_key(request: FunctionRequest) -> int:
    """Return a hash of the arguments, variables and seed that an instance is created with."""
    env = tuple(sorted(request.env.items())) if request.env else ()
    arguments = bytes(request.constructor_args), bytes(request.constructor_kwargs)
    return hash((*arguments, env, request.seed))


def _function_key(request: FunctionRequest) -> int:
    """Return a hash of the request's code and name; collisions are as rare as for any hash."""
    return hash(
        (
            request.function_name or request.class_name,
            bytes(request.function_code),
            bytes(request.class_code),
            bytes(request.modules),
            # Names without values: preloading depends only on whether imports read the variables.
            tuple(sorted(request.env)) if request.env else (),
        )
    )
