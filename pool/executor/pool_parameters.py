"""Parameters of `Pool`: names, valid values, and messages of refusals.

    Pool(queue_limit=-1) -> InvalidRequest: queue_limit must be a whole number, 0 or more, or None;
                            got -1

All are checked before anything starts. Otherwise a limit that makes no sense (a negative queue, a
time limit that is not a number) shows late, as a pool that hangs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from flashpool.pool._child.fork_server import memory_tricks
from flashpool.pool.config import PoolConfig
from flashpool.pool.errors import InvalidRequest
from flashpool.pool.limits import (
    CONCURRENCY_MAX,
    MEMORY_MB_MAX,
    MEMORY_MB_MIN,
    PRELOAD_ZYGOTES_MAX,
    SECONDS_MAX,
    WORKERS_MAX,
    is_number,
    is_whole,
)

from . import stopping
from .call_options import check_env, check_names


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterKind:
    """The values that a parameter accepts; ``read`` converts one to the setting's, or raises."""

    accepts: str
    read: Callable[[Any], Any]


def _whole(low: int, high: int | None = None, *, unit: str = "a whole number") -> ParameterKind:
    def read(value: Any) -> int:
        if not is_whole(value) or value < low or (high is not None and value > high):
            raise ValueError
        return int(value)

    bounds = f"{low} or more" if high is None else f"{low} to {high}"
    return ParameterKind(accepts=f"{unit}, {bounds}", read=read)


def _seconds(*, zero: bool = False) -> ParameterKind:
    def read(value: Any) -> float:
        if not is_number(value) or not 0 <= value <= SECONDS_MAX or (value == 0 and not zero):
            raise ValueError
        return float(value)

    least = "0 or more" if zero else "more than 0"
    return ParameterKind(accepts=f"seconds, {least} and at most {SECONDS_MAX}", read=read)


def _or_none(kind: ParameterKind) -> ParameterKind:
    return ParameterKind(
        accepts=f"{kind.accepts}, or None",
        read=lambda value: None if value is None else kind.read(value),
    )


def _one_of(*words: str) -> ParameterKind:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    return ParameterKind(accepts=" or ".join(map(repr, words)), read=read)


def _some_of(*words: str) -> ParameterKind:
    def read(value: Any) -> tuple[str, ...]:
        chosen = _list_of("words").read(value)
        if not set(chosen) <= set(words):
            raise ValueError
        return tuple(chosen)

    return ParameterKind(accepts=f"a list, of {', '.join(map(repr, words))}", read=read)


def _list_of(what: str) -> ParameterKind:
    def read(value: Any) -> tuple[str, ...]:
        # A single string would be read as a list of characters.
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError
        return tuple(map(_path, value))

    return ParameterKind(accepts=f"a list of {what}", read=read)


def _path(value: Any) -> str:
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError
    return path


def _folder(value: Any) -> str:
    # Calls would run in / instead, where a relative path means another file.
    path = _path(value)
    if not os.path.isdir(path) or not os.access(path, os.X_OK):
        raise ValueError
    return os.path.abspath(path)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _environment(value: Any) -> dict[str, str]:
    check_env("worker_env", value)
    return dict(value)


def _store(value: Any) -> Any:
    if value is not None:
        from flashpool.envs import EnvSettings

        if not isinstance(value, EnvSettings):
            raise TypeError
    return value


_LEVELS: Final = tuple(logging.getLevelName(level) for level in (10, 20, 30, 40, 50))

#: Kinds by name; the value of a parameter without a kind is used unchanged.
KINDS: Final[Mapping[str, ParameterKind]] = {
    "max_workers": _or_none(_whole(1, WORKERS_MAX)),
    "timeout": _or_none(_seconds()),
    "memory_mb": _or_none(_whole(MEMORY_MB_MIN, MEMORY_MB_MAX, unit="a whole number of MiB")),
    "show_output": ParameterKind(accepts="True or False", read=_boolean),
    "on_error": _one_of(stopping.FINISH, stopping.TERMINATE),
    "environments": ParameterKind(accepts="an EnvSettings of flashpool.envs, or None", read=_store),
    "base_python": ParameterKind(accepts="the path of a Python interpreter", read=_path),
    "queue_limit": _or_none(_whole(0)),
    "queue_timeout_s": _or_none(_seconds()),
    "grace_s": _seconds(zero=True),
    "exit_s": _seconds(zero=True),
    "exit_answer_s": _seconds(zero=True),
    "start_timeout_s": _seconds(),
    "output_limit": _whole(0, unit="a whole number of bytes"),
    "max_spares": _whole(0, WORKERS_MAX),
    "spare_idle_s": _seconds(),
    "max_environments": _whole(1, WORKERS_MAX),
    "environment_idle_s": _seconds(),
    "gpus_per_call": _or_none(_whole(0)),
    "calls_per_gpu": _whole(1),
    "gpu_settle_s": _seconds(),
    "gpu_tolerance_mb": _whole(1, unit="a whole number of MiB"),
    "instances": _whole(1, WORKERS_MAX),
    "instance_idle_s": _or_none(_seconds()),
    "instances_mb": _or_none(_whole(1, unit="a whole number of MiB")),
    "instances_gpu_mb": _or_none(_whole(1, unit="a whole number of MiB")),
    "instance_concurrency": _whole(1, CONCURRENCY_MAX),
    "preload": _list_of("module names"),
    "preload_learn": _list_of("patterns of module names"),
    "preload_zygotes": _whole(1, PRELOAD_ZYGOTES_MAX),
    "worker_env": ParameterKind(accepts="a mapping of names to values", read=_environment),
    "extra_path": _list_of("paths"),
    "workdir": ParameterKind(accepts="the path of a folder that can be entered", read=_folder),
    "start_method": _one_of("fork", "spawn"),
    "memory_tricks": _some_of(*memory_tricks.ALL, memory_tricks.UNTRIED),
    "log_level": _one_of(*_LEVELS),
}

#: Parameters of `Pool` that stand for a setting of another name, or for no setting.
OWN: Final = (
    "max_workers",
    "timeout",
    "memory_mb",
    "dependencies",
    "python_version",
    "system_dependencies",
    "environments",
    "show_output",
    "on_error",
)
#: Settings that `Pool` derives from its own parameters, or does not accept.
TAKEN: Final = ("slots", "call_timeout_s", "memory_mb", "sharing", "split_output")


def check(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of parameters in the form of settings.

    Raises:
        InvalidRequest: a parameter is unknown, or its value is not valid.
    """
    settings = [one.name for one in fields(PoolConfig) if one.name not in TAKEN]
    check_names("parameter", given, [*OWN, *settings])
    return {name: _read(name, value) for name, value in given.items()}


def concurrency(value: Any) -> int:
    """Return the value of an instance's ``max_concurrency``.

    Raises:
        InvalidRequest: the value is not valid.
    """
    try:
        return int(KINDS["instance_concurrency"].read(value))
    except (TypeError, ValueError):
        accepts = KINDS["instance_concurrency"].accepts
        raise InvalidRequest(f"max_concurrency must be {accepts}; got {value!r}") from None


def _read(name: str, value: Any) -> Any:
    kind = KINDS.get(name)
    if kind is None:
        return value
    try:
        return kind.read(value)
    except InvalidRequest:
        raise
    except (TypeError, ValueError):
        raise InvalidRequest(f"{name} must be {kind.accepts}; got {value!r}") from None
