"""What a caller may ask for a call: the keywords of `Pool.options`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .calls import Limits
from .errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of the calls made through one view of a pool. ``None`` is no limit."""

    #: Requirements of the environment the call runs in; none is the base environment.
    dependencies: tuple[str, ...] = ()
    #: GPUs the call gets for its own.
    gpus: int | None = None
    #: Seconds it may run.
    timeout: float | None = None
    #: Seconds it may wait for a slot.
    queue_timeout: float | None = None
    #: Mebibytes of memory its process tree may use.
    memory_mb: int | None = None
    #: Environment variables, on top of the pool's.
    env: Mapping[str, str] = field(default_factory=dict)
    #: ``"call"``: a process per call.
    isolation: str = "call"
    #: It may run again when its worker dies half-way.
    idempotent: bool = False

    def merged(self, changes: Mapping[str, Any]) -> CallOptions:
        """These options with some changed.

        Raises:
            InvalidRequest: an option is unknown, or its value makes no sense.
        """
        known = [one.name for one in fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise InvalidRequest(
                f"unknown option {', '.join(unknown)}; there are: {', '.join(known)}"
            )
        values = dict(changes)
        if "dependencies" in values:
            values["dependencies"] = _requirements(values["dependencies"])
        merged = replace(self, **values)
        _check(merged)
        return merged

    def limits(self) -> Limits:
        """The limits of a call."""
        return Limits(run_s=self.timeout, queue_s=self.queue_timeout, memory_mb=self.memory_mb)


def _requirements(value: Iterable[str] | str | None) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidRequest(f"dependencies is a list of requirements, not one string: [{value!r}]")
    return tuple(value or ())


def _check(options: CallOptions) -> None:
    for name in ("timeout", "queue_timeout", "memory_mb"):
        value = getattr(options, name)
        if value is not None and not (_is_number(value) and value > 0):
            raise InvalidRequest(f"{name} is a number above 0, or None for no limit; got {value!r}")
    _check_env(options.env)
    if options.isolation != "call":
        raise InvalidRequest(
            f"isolation is 'call' (a process for each call); got {options.isolation!r}"
        )
    if options.dependencies:
        raise InvalidRequest(
            "this build runs calls in the base environment only, so dependencies cannot be "
            f"installed: {', '.join(options.dependencies)}. Install them where the pool's "
            "interpreter finds them."
        )
    if options.gpus:
        raise InvalidRequest(
            f"this build does not lease GPUs, so gpus must be 0 or None; got {options.gpus!r}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_env(env: object) -> None:
    if not isinstance(env, Mapping):
        raise InvalidRequest(f"env maps names to values; got {env!r}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name or "=" in name:
            raise InvalidRequest(
                f"an environment variable is a name and a text; got {name!r}: {value!r}"
            )
        if "\0" in name + value:
            raise InvalidRequest(f"environment variable {name!r} contains a NUL byte")
