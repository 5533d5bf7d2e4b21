"""Every ``FLASHPOOL_*`` variable: one table, read once, checked before anything starts.

    environment --> Settings.from_environ --> Settings --> to_pool_config --> Supervisor
                         |                       |
                         `- SettingsError        `- origins: default | environment | pod |
                            (all errors at once)             the platform's own variable

The table is the class `Settings`, which consists of groups: a field is a setting, and its variable
is ``FLASHPOOL_`` with the field's name in capitals. An empty variable counts as not set, because
compose files and pod templates leave variables empty. On a RunPod pod a few defaults differ: the
platform reaches a pod only from outside, and the owner of the pod sends its code.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from flashpool.pool.config import PoolConfig

from .app_workers import AppWorkerSettings
from .apps import AppSettings
from .calls import Calls, Gpus, Workers
from .environments import EnvironmentSettings
from .field import Setting, rows
from .jobs import QueueSettings
from .server import Intake, Listening, Log
from .worker_env import worker_env

if TYPE_CHECKING:
    from flashpool.envs import EnvSettings

PREFIX: Final = "FLASHPOOL_"
#: Suffix of a secret's variable that names a file with the secret, as orchestrators mount it.
FILE: Final = "_FILE"
_MOST_IN_FILE: Final = 64 * 1024
_Number = TypeVar("_Number", int, float)


class SettingsError(ValueError):
    """Variables have invalid values; ``problems`` names all of them."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


#: All groups of settings, in the order of the table.
_GROUPS: Final = (
    *(Listening, Intake, Calls, Gpus, Workers),
    *(EnvironmentSettings, AppSettings, AppWorkerSettings, QueueSettings, Log),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(
    Listening,
    Intake,
    Calls,
    Gpus,
    Workers,
    EnvironmentSettings,
    AppSettings,
    AppWorkerSettings,
    QueueSettings,
    Log,
):
    """The values of all settings. Create it with `from_environ`."""

    #: Field name -> the origin of its value.
    origins: Mapping[str, str] = field(default_factory=dict)
    #: Environment of every worker: allowed variables only, see `worker_env`.
    worker_env: Mapping[str, str] = field(default_factory=dict)
    #: Whether this process runs in a RunPod pod.
    on_pod: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check all settings; a `SettingsError` names every invalid one."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        problems: list[str] = []
        for name, row in table().items():
            try:
                text, origins[name] = _text_of(name, row, environ)
            except ValueError as error:
                problems.append(str(error))
                continue
            try:
                values[name] = row.kind.parse(text)
            except ValueError as error:
                problems.append(_problem(name, row, text, origins[name], error))
        if problems:
            raise SettingsError(tuple(problems))
        return cls(
            **values,
            origins=origins,
            worker_env=worker_env(environ, values["pass_env"]),
            on_pod=_on_pod(environ),
        )

    def to_pool_config(self) -> PoolConfig:
        """Return the configuration of the pool."""
        return PoolConfig(
            base_python=self.base_python,
            slots=self.slots,
            queue_limit=self.queue_limit,
            queue_timeout_s=self.queue_timeout_s,
            call_timeout_s=_lower(self.call_timeout_s, self.max_timeout_s),
            memory_mb=_lower(self.memory_mb, self.max_memory_mb),
            grace_s=self.grace_s,
            exit_s=self.exit_s,
            exit_answer_s=self.exit_answer_s,
            start_timeout_s=self.start_timeout_s,
            output_limit=self.output_limit_kb * 1024,
            max_spares=self.spares,
            spare_idle_s=self.spare_idle_s,
            max_environments=self.max_environments,
            environment_idle_s=self.environment_idle_s,
            instances=self.instances,
            instance_idle_s=self.instance_idle_s,
            instances_mb=self.instances_mb,
            instances_gpu_mb=self.instances_gpu_mb,
            instance_concurrency=self.instance_concurrency,
            preload=self.preload,
            preload_learn=self.preload_learn,
            preload_zygotes=self.preload_zygotes,
            worker_env=self.worker_env,
            start_method=self.start_method,
            memory_tricks=self.memory_tricks,
            gpus_per_call=self._gpus_per_call(),
            calls_per_gpu=self.calls_per_gpu,
            gpu_settle_s=self.gpu_settle_s,
            gpu_tolerance_mb=self.gpu_tolerance_mb,
            log_level=self.log_level,
        )

    def _gpus_per_call(self) -> int | None:
        if self.gpus_per_call is None:  # None: 1 if there are GPUs
            return 0 if self.max_gpus_per_call == 0 else None
        return _lower(self.gpus_per_call, self.max_gpus_per_call)

    def to_env_settings(self) -> EnvSettings:
        """Return the configuration of the library of environments."""
        from flashpool.envs import EnvSettings

        return EnvSettings(
            base_python=Path(self.base_python),
            volume=_path(self.volume),
            local=_path(self.local_dir),
            mode=cast("Literal['auto', 'volume', 'archive']", self.env_mode),
            uv=_path(self.uv),
            index_url=self.index_url or None,
            extra_index_urls=self.extra_index_urls,
            find_links=self.find_links,
            offline=self.offline,
            references=frozenset(self.env_references),
            allow_python_downloads=self.python_downloads,
            auto_build_tools=self.auto_build_tools,
            compile_bytecode=self.compile_bytecode,
            quota_mb=self.env_quota_mb,
            min_free_mb=self.env_min_free_mb,
            max_age_s=self.env_max_age_s,
            build_timeout_s=self.build_timeout_s,
            memo_s=self.env_memo_s,
            failure_s=self.env_failure_s,
            builds=self.env_builds,
            hold_s=self.env_hold_s,
            heartbeat_s=self.env_heartbeat_s,
            stale_s=self.env_stale_s,
            claim_stale_s=self.env_claim_stale_s,
            volume_key=self.volume_key.encode() or None,
        )


def _lower(default: _Number | None, most: _Number | None) -> _Number | None:
    """Return the value for a request without one, at most the ceiling; None means no limit."""
    return most if default is None or (most is not None and most < default) else default


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def table() -> dict[str, Setting]:
    """Return field name -> row."""
    return {name: row for group in _GROUPS for name, row in rows(group).items()}


def variable(name: str) -> str:
    """Return the environment variable of a field."""
    return PREFIX + name.upper()


def unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return a sentence for each ``FLASHPOOL_*`` variable that is not a setting."""
    environ = os.environ if environ is None else environ
    known = {variable(name) for name in table()}
    known |= {variable(name) + FILE for name, row in table().items() if row.secret}
    return [
        f"{name} is not a setting and changes nothing{_hint(name, known)}"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known
    ]


def _hint(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else "; `flashpool settings` lists all"


def _on_pod(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("RUNPOD_POD_ID"))


def _text_of(name: str, row: Setting, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the text to parse, and its origin."""
    if given := environ.get(variable(name), "").strip():
        return given, "environment"
    if row.secret and (path := environ.get(variable(name) + FILE, "").strip()):
        return _text_in(variable(name) + FILE, path), "environment"
    if row.also and (given := environ.get(row.also, "").strip()):
        return given, row.also
    if _on_pod(environ) and (text := row.pod(environ)):
        return text, "pod"
    return row.default(), "default"


def _text_in(name: str, path: str) -> str:
    """Read a secret from a file, without the line end after it."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            text = file.read(_MOST_IN_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}={path!r} cannot be read ({error})") from error
    if not text:
        # An empty token would mean that no token is required.
        raise ValueError(f"{name}={path!r} is empty; accepted: a file that holds the value")
    return text


def _problem(name: str, row: Setting, text: str, origin: str, error: ValueError) -> str:
    shown = "(hidden)" if row.secret else repr(text)
    source = {"environment": "", row.also: f" (from {origin})"}.get(origin, f" (from the {origin})")
    why = f" ({error})" if str(error) else ""
    return f"{variable(name)}={shown}{source} cannot be used{why}; accepted: {row.kind.accepts}"
