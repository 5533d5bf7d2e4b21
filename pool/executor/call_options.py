"""Options of a call: the keywords of `Pool.options`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from flashpool.pool.calls import CallLimits
from flashpool.pool.errors import InvalidRequest
from flashpool.pool.limits import (
    MEMORY_ACCEPTS,
    SECONDS_MAX,
    SEED_ACCEPTS,
    fits_memory,
    fits_seconds,
    fits_seed,
    is_number,
    is_variable,
    is_whole,
)

if TYPE_CHECKING:
    from flashpool.envs import Spec


class CallKeywords(TypedDict, total=False):
    """The keywords of `Pool.options`, for editors and type checkers; see `CallOptions`."""

    dependencies: Iterable[str]
    python_version: str | None
    system_dependencies: Iterable[str]
    refresh: bool
    gpus: int | None
    timeout: float | None
    soft_timeout: float | None
    queue_timeout: float | None
    memory_mb: int | None
    seed: int | None
    env: Mapping[str, str]
    isolation: str
    idempotent: bool
    scratch: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of the calls made through one view of a pool. ``None``: the pool's default."""

    #: The call's environment: requirements, version of Python, system packages. If all are empty,
    #: it is the base environment.
    dependencies: tuple[str, ...] = ()
    python_version: str | None = None
    system_dependencies: tuple[str, ...] = ()
    #: Resolve the requirements again instead of reusing recently resolved versions.
    refresh: bool = False
    #: Number of GPUs that only this call gets; it does not see other GPUs.
    gpus: int | None = None
    #: Seconds that the call may run.
    timeout: float | None = None
    #: Seconds after which `SoftTimeout` is raised in the call, so that ``finally`` runs; before
    #: ``timeout``.
    soft_timeout: float | None = None
    #: Seconds that the call may wait for a slot.
    queue_timeout: float | None = None
    #: Mebibytes of memory that the call's process tree may use.
    memory_mb: int | None = None
    #: Seed of the call's random numbers, which are then the same in each call with this seed;
    #: `uuid`, `secrets` and ``os.urandom`` stay random. None: numbers differ from call to call.
    seed: int | None = None
    #: Environment variables, in addition to the pool's.
    env: Mapping[str, str] = field(default_factory=dict)
    #: ``"call"``: a process per call.
    isolation: str = "call"
    #: The call may run again if its worker dies while it runs.
    idempotent: bool = False
    #: The call has a directory of its own as working directory and ``TMPDIR``, removed with the
    #: call.
    scratch: bool = False

    def merged(self, changes: Mapping[str, Any]) -> CallOptions:
        """Return these options with some of them changed.

        Raises:
            InvalidRequest: an option is unknown, or its value is not valid.
        """
        check_names("option", changes, [one.name for one in fields(self)])
        values = dict(changes)
        for name in ("dependencies", "system_dependencies"):
            if name in values:
                values[name] = _names(name, values[name])
        if isinstance(values.get("env"), Mapping):
            values["env"] = dict(values["env"])  # a copy: the caller may change its own later
        merged = replace(self, **values)
        _check(merged)
        return merged

    def environment(self) -> Spec | None:
        """Return the packages of the call's environment; None: the base environment."""
        if not (self.dependencies or self.system_dependencies or self.python_version):
            return None
        from flashpool.envs import Spec

        return Spec(
            requirements=self.dependencies,
            system_packages=self.system_dependencies,
            python_version=self.python_version,
            refresh=self.refresh,
        )

    def touches(self) -> frozenset[str]:
        """Return what a call with these options touches; see `scheduling.preloading`."""
        touched = {f"env:{name}" for name in self.env}
        if self.seed is not None:
            touched.add("random")
        if self.scratch:
            touched |= {"cwd", "env:TMPDIR"}
        return frozenset(touched)

    def limits(self) -> CallLimits:
        """Return the limits of a call."""
        return CallLimits(
            run_s=self.timeout,
            soft_s=self.soft_timeout,
            queue_s=self.queue_timeout,
            memory_mb=self.memory_mb,
        )


def check_names(what: str, given: Iterable[str], known: list[str]) -> None:
    """Raise an error for unknown names; suggest the closest match and list all names."""
    for name in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidRequest(f"unknown {what} {name}{hint}; valid names: {', '.join(known)}")


def _names(option: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidRequest(
            f"{option} must be a list of requirements, not one string: [{value!r}]"
        )
    names = tuple(value or ())
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InvalidRequest(f"{option} must be a list of requirements; got {name!r} in it")
    return names


def _check(options: CallOptions) -> None:
    for name in ("timeout", "soft_timeout", "queue_timeout"):
        value = getattr(options, name)
        if value is not None and not (is_number(value) and fits_seconds(value)):
            raise InvalidRequest(
                f"{name} must be seconds, more than 0 and at most {SECONDS_MAX}, or None; got {value!r}"
            )
    memory_mb = options.memory_mb
    if memory_mb is not None and not (is_whole(memory_mb) and fits_memory(memory_mb)):
        raise InvalidRequest(f"memory_mb must be {MEMORY_ACCEPTS}, or None; got {memory_mb!r}")
    if options.seed is not None and not (is_whole(options.seed) and fits_seed(options.seed)):
        raise InvalidRequest(f"seed must be {SEED_ACCEPTS}, or None; got {options.seed!r}")
    for name in ("refresh", "idempotent", "scratch"):
        if not isinstance(flag := getattr(options, name), bool):
            raise InvalidRequest(f"{name} must be True or False; got {flag!r}")
    check_env("env", options.env)
    if options.isolation != "call":
        raise InvalidRequest(
            f"isolation must be 'call' (one process per call); got {options.isolation!r}"
        )
    version: object = options.python_version
    if version is not None and not (isinstance(version, str) and _is_python_version(version)):
        raise InvalidRequest(
            f"python_version must be a string such as '3.12' or '3.12.1'; got {version!r}"
        )
    if options.gpus is not None and not (is_whole(options.gpus) and options.gpus >= 0):
        raise InvalidRequest(
            f"gpus must be a whole number, 0 or more, or None; got {options.gpus!r}"
        )


def _is_python_version(text: str) -> bool:
    # Imported late: only calls with an environment of their own need it.
    from flashpool.envs.resolving.spec import is_python_version

    return is_python_version(text)


def check_env(what: str, env: object) -> None:
    """Raise InvalidRequest for anything that cannot be a set of environment variables."""
    if not isinstance(env, Mapping):
        raise InvalidRequest(f"{what} must be a mapping of names to values; got {env!r}")
    for name, value in env.items():
        texts = isinstance(name, str) and isinstance(value, str)
        if not (texts and is_variable(name, value)):
            raise InvalidRequest(
                f"{what}: the name and the value of a variable must be strings without NUL, the "
                f"name without '='; got {name!r}: {value!r}"
            )
