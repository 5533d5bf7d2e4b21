"""Every ``FLASHPOOL_*`` variable: one table, read once, checked before anything starts.

    environment --> Settings.from_environ --> Settings --> to_pool_config --> Supervisor
                         |                       |
                         `- SettingsError        `- origins: default | environment | pod
                            (all wrong ones at once)

The table is the class `Settings` itself: a field is a setting, ``FLASHPOOL_`` and its name
in capitals the variable. An empty variable counts as not set, as compose files and pod
templates leave them. On a RunPod pod a few defaults differ (the platform reaches a pod
only from outside, and the pod's owner is the one who sends it code).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from . import parsers as kind
from .config import PoolConfig, usable_cores
from .worker_env import ON_A_POD, worker_env

if TYPE_CHECKING:
    from flashpool.envs import EnvSettings

PREFIX: Final = "FLASHPOOL_"
_KEY: Final = "setting"


class SettingsError(ValueError):
    """One or more variables hold values that cannot be used; ``problems`` names them all."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    kind: kind.Kind
    #: The default as one would write it into the variable.
    default: Callable[[], str]
    meaning: str
    #: Default on a RunPod pod, given the environment; None: no other than elsewhere.
    pod: Callable[[Mapping[str, str]], str | None]
    secret: bool


def _setting(
    kind: kind.Kind,
    default: str | Callable[[], str],
    meaning: str,
    *,
    pod: str | Callable[[Mapping[str, str]], str | None] | None = None,
    secret: bool = False,
) -> Any:
    row = Setting(
        kind=kind,
        default=default if callable(default) else lambda: default,
        meaning=meaning,
        pod=pod if callable(pod) else lambda _environ: pod,
        secret=secret,
    )
    return field(metadata={_KEY: row})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values in force. Make it with `from_environ`."""

    # Where it listens
    host: str = _setting(
        kind.TEXT,
        "127.0.0.1",
        "Address /execute is served on.",
        pod="0.0.0.0",  # noqa: S104 - the platform comes from outside
    )
    port: int = _setting(
        kind.PORT,
        "8000",
        "Port /execute is served on; 0 picks a free one.",
        pod=lambda environ: environ.get("PORT"),
    )
    token: str = _setting(
        kind.TOKEN, "none", "Bearer token every /execute must carry.", secret=True
    )
    allow_open: bool = _setting(
        kind.BOOLEAN,
        "no",
        "Serve on a non-loopback address without a token: whoever reaches it runs code here.",
    )
    admin_host: str = _setting(kind.TEXT, "127.0.0.1", "Address of the admin listener (/stats).")
    admin_port: int = _setting(kind.PORT, "8001", "Port of the admin listener; 0 picks a free one.")

    # What it takes, and for how long
    max_body_mb: int = _setting(
        kind.integer(1, 4096), "32", "Largest request body, MiB; a larger one gets 413."
    )
    result_limit_mb: int = _setting(
        kind.integer(1, 4096),
        "10",
        "Largest encoded result over /execute, MiB; the flash client takes no more than 10.",
    )
    receive_timeout_s: float = _setting(
        kind.seconds(), "60", "Seconds a client has to send a whole request."
    )
    header_timeout_s: float = _setting(
        kind.seconds(), "10", "Seconds a client has to send the headers of a request."
    )
    send_timeout_s: float = _setting(
        kind.seconds(), "60", "Seconds a client may go without taking a byte of its response."
    )
    keepalive_s: int = _setting(
        kind.integer(1, 86400), "600", "Seconds an idle connection is kept open."
    )

    # Calls
    slots: int = _setting(
        kind.integer(1, 4096), lambda: str(usable_cores()), "Calls that run at once."
    )
    queue_limit: int = _setting(
        kind.integer(0, 1_000_000), "1000", "Calls that may wait; one more gets 503."
    )
    queue_timeout_s: float | None = _setting(
        kind.optional(kind.seconds()), "none", "Seconds a call may wait for a slot."
    )
    call_timeout_s: float | None = _setting(
        kind.optional(kind.seconds()),
        "600",
        "Seconds a call may run, unless its request says timeout_s.",
    )
    memory_mb: int | None = _setting(
        kind.optional(kind.integer(16, 1 << 30)),
        "none",
        "MiB a call's process tree may hold, unless its request says memory_mb.",
    )
    grace_s: float = _setting(
        kind.seconds(zero=True), "2", "Seconds between SIGTERM and SIGKILL when a call is ended."
    )
    drain_s: float = _setting(
        kind.seconds(zero=True), "30", "Seconds running calls get to finish after SIGTERM."
    )
    output_limit_kb: int = _setting(
        kind.integer(1, 1 << 20), "1024", "KiB of output kept per call; the middle goes first."
    )

    # GPUs
    gpus_per_call: int | None = _setting(
        kind.automatic(kind.integer(0, 64)),
        "auto",
        "GPUs a call gets, unless its request says gpus; auto: 1 where there are GPUs, else 0.",
    )
    calls_per_gpu: int = _setting(kind.integer(1, 64), "1", "Calls that may be on one GPU at once.")
    gpu_settle_s: float = _setting(
        kind.seconds(),
        "10",
        "Seconds for a GPU's memory to come back after a call; past that it is quarantined.",
    )
    gpu_tolerance_mb: int = _setting(
        kind.integer(1, 1 << 20),
        "64",
        "MiB more in use than before its calls that count as come back.",
    )

    # Workers
    base_python: str = _setting(
        kind.INTERPRETER,
        lambda: sys.executable,
        "Interpreter of calls that name no dependencies; they see its packages.",
    )
    start_timeout_s: float = _setting(
        kind.seconds(), "60", "Seconds an interpreter may take to come up, preloads included."
    )
    start_method: str = _setting(
        kind.choice("fork", "spawn"),
        "fork",
        "How workers start: forked from a prepared process, or each on its own (slower).",
    )
    spares: int = _setting(
        kind.integer(0, 1024), "8", "Most workers kept ready ahead of calls, per zygote."
    )
    spare_idle_s: float = _setting(
        kind.seconds(), "60", "Seconds without a call after which spares are let go."
    )
    max_environments: int = _setting(
        kind.integer(1, 1024),
        "32",
        "Environments beside the base whose processes are kept up at once.",
    )
    environment_idle_s: float = _setting(
        kind.seconds(),
        "900",
        "Seconds without a call after which an environment's processes are let go.",
    )
    instances: int = _setting(kind.integer(1, 4096), "16", "Class instances that are kept at once.")
    instance_idle_s: float | None = _setting(
        kind.optional(kind.seconds()),
        "900",
        "Seconds without a call after which an instance is closed.",
    )
    instances_mb: int | None = _setting(
        kind.optional(kind.integer(1, 1 << 40)),
        "none",
        "Memory all instances may use before idle ones are closed, MiB.",
    )
    instance_concurrency: int = _setting(
        kind.integer(1, 1000),
        "32",
        "Calls of one instance's async methods that run together, unless the request says.",
    )
    preload: tuple[str, ...] = _setting(
        kind.MODULES, "none", "Modules imported before workers are forked."
    )
    preload_learn: tuple[str, ...] = _setting(
        kind.PATTERNS,
        "*",
        "Patterns of modules that may be preloaded because calls keep importing them.",
    )
    pass_env: tuple[str, ...] = _setting(
        kind.PATTERNS,
        "none",
        "Patterns of further variables calls may see; a secret only by its exact name.",
        pod=ON_A_POD,
    )

    # Environments
    volume: str | None = _setting(
        kind.optional(kind.PATH),
        "none",
        "Volume that keeps environments for all pods; none: /runpod-volume where it is mounted.",
    )
    local_dir: str | None = _setting(
        kind.optional(kind.PATH),
        "none",
        "Directory on local disk for environments; none: the user's cache directory.",
    )
    env_mode: str = _setting(
        kind.choice("auto", "volume", "archive"),
        "auto",
        "Environments in place on the volume, or as archives that are unpacked on local disk; auto: by its filesystem.",
    )
    env_quota_mb: int = _setting(
        kind.integer(0, 1 << 30), "0", "MiB that environments may take; 0: no limit."
    )
    env_min_free_mb: int = _setting(
        kind.integer(0, 1 << 30), "256", "MiB that are kept free where environments lie."
    )
    env_max_age_s: float = _setting(
        kind.seconds(zero=True),
        "0",
        "Seconds without use after which an environment is deleted; 0: never for its age.",
    )
    env_memo_s: float = _setting(
        kind.seconds(zero=True), "3600", "Seconds for which a request means the same versions."
    )
    env_failure_s: float = _setting(
        kind.seconds(zero=True),
        "60",
        "Seconds for which a request that could not be built gets the same answer again.",
    )
    env_builds: int = _setting(
        kind.integer(1, 256), "4", "Environments that are built at once; more wait in a queue."
    )
    env_hold_s: float = _setting(
        kind.seconds(zero=True),
        "10",
        "Seconds for which an environment stays reserved after its last call, on all pods.",
    )
    env_heartbeat_s: float = _setting(
        kind.seconds(), "2", "Seconds between two signs of life that this pod leaves on the volume."
    )
    env_stale_s: float = _setting(
        kind.seconds(),
        "60",
        "Seconds without a sign of life after which a pod's reservations no longer count.",
    )
    env_claim_stale_s: float = _setting(
        kind.seconds(),
        "15",
        "Seconds without a sign of life after which another pod takes over its build.",
    )
    env_references: tuple[str, ...] = _setting(
        kind.some_of("url", "vcs", "local"),
        "url,vcs,local",
        "Kinds of direct references that requests may name.",
    )
    build_timeout_s: float = _setting(
        kind.seconds(), "600", "Seconds that making an environment may take."
    )
    auto_build_tools: bool = _setting(
        kind.BOOLEAN,
        "no",
        "Install build-essential when a package needs a compiler and there is none.",
    )
    compile_bytecode: bool = _setting(
        kind.BOOLEAN, "yes", "Compile the modules of new environments ahead of calls."
    )
    python_downloads: bool = _setting(
        kind.BOOLEAN, "no", "Download a Python that a request names and that is not installed."
    )
    uv: str | None = _setting(kind.optional(kind.PATH), "none", "The uv program; none: our own.")
    index_url: str = _setting(
        kind.WORD,
        "none",
        "Package index in place of PyPI; may hold a password, so it is not shown.",
        secret=True,
    )
    extra_index_urls: tuple[str, ...] = _setting(
        kind.PATTERNS, "none", "Further package indexes; not shown either.", secret=True
    )
    find_links: tuple[str, ...] = _setting(
        kind.PATTERNS, "none", "Directories or pages with further packages."
    )
    offline: bool = _setting(kind.BOOLEAN, "no", "Use no network for environments.")
    volume_key: str = _setting(
        kind.WORD,
        "none",
        "Key that signs environments on a shared volume; without it only damage is noticed.",
        secret=True,
    )

    # The queue
    qb_concurrency: int | None = _setting(
        kind.optional(kind.integer(1, 4096)),
        "none",
        "Jobs taken from the queue at once; none: as many as there are slots.",
    )
    qb_progress: bool = _setting(
        kind.BOOLEAN, "no", "Post build and start of a job as progress updates."
    )
    return_aggregate_stream: bool = _setting(
        kind.BOOLEAN,
        "yes",
        "Answer jobs that streamed their items with all of them, too, unless the request says return_aggregate_stream.",
    )
    job_timeout_s: float | None = _setting(
        kind.optional(kind.seconds()),
        "600",
        "Seconds the platform gives a job that names no executionTimeout; it is reported before.",
    )
    job_result_limit_mb: int = _setting(
        kind.integer(1, 4096),
        "10",
        "Largest report of a job, millions of bytes; the platform takes 10 of a job of /run, 20 of /runsync.",
    )
    result_spill: bool = _setting(
        kind.BOOLEAN,
        "no",
        "Write results that are too large for the platform to the volume, and answer where they are.",
    )
    spill_limit_mb: int = _setting(
        kind.integer(1, 4096), "1024", "Largest encoded result that is written to the volume, MiB."
    )
    spill_keep_s: float = _setting(
        kind.seconds(), "86400", "Seconds that results written to the volume are kept."
    )
    report_retry_s: float = _setting(
        kind.seconds(zero=True),
        "3600",
        "Seconds for which a result that the platform does not take is offered again.",
    )
    state_dir: str | None = _setting(
        kind.optional(kind.PATH),
        "none",
        "Directory of results that wait to be taken; none: on the volume, else FLASHPOOL_LOCAL_DIR.",
    )

    log_level: str = _setting(
        kind.choice("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "Level of the server's log, and of the root logger in calls.",
    )

    #: Field name -> where its value came from.
    origins: Mapping[str, str] = field(default_factory=dict)
    #: Environment of every worker: allowed variables only, see `worker_env`.
    worker_env: Mapping[str, str] = field(default_factory=dict)
    #: Whether this is a RunPod pod.
    on_pod: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check them all; raises `SettingsError` that names every wrong one."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        problems: list[str] = []
        for name, row in table().items():
            text, origins[name] = _text_of(name, row, environ)
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
        """What the pool is made with."""
        return PoolConfig(
            base_python=self.base_python,
            slots=self.slots,
            queue_limit=self.queue_limit,
            queue_timeout_s=self.queue_timeout_s,
            call_timeout_s=self.call_timeout_s,
            memory_mb=self.memory_mb,
            grace_s=self.grace_s,
            start_timeout_s=self.start_timeout_s,
            output_limit=self.output_limit_kb * 1024,
            max_spares=self.spares,
            spare_idle_s=self.spare_idle_s,
            max_environments=self.max_environments,
            environment_idle_s=self.environment_idle_s,
            instances=self.instances,
            instance_idle_s=self.instance_idle_s,
            instances_mb=self.instances_mb,
            instance_concurrency=self.instance_concurrency,
            preload=self.preload,
            preload_learn=self.preload_learn,
            worker_env=self.worker_env,
            start_method=self.start_method,
            gpus_per_call=self.gpus_per_call,
            calls_per_gpu=self.calls_per_gpu,
            gpu_settle_s=self.gpu_settle_s,
            gpu_tolerance_mb=self.gpu_tolerance_mb,
            log_level=self.log_level,
        )

    def to_env_settings(self) -> EnvSettings:
        """What the library of environments is made with."""
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


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def table() -> dict[str, Setting]:
    """Field name -> row, in the order of the class."""
    fields = dataclasses.fields(Settings)
    return {item.name: item.metadata[_KEY] for item in fields if _KEY in item.metadata}


def variable(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for each ``FLASHPOOL_*`` variable that is no setting."""
    environ = os.environ if environ is None else environ
    known = {variable(name) for name in table()}
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
    """The text to parse, and its origin."""
    if given := environ.get(variable(name), "").strip():
        return given, "environment"
    if _on_pod(environ) and (text := row.pod(environ)):
        return text, "pod"
    return row.default(), "default"


def _problem(name: str, row: Setting, text: str, origin: str, error: ValueError) -> str:
    shown = "(hidden)" if row.secret else repr(text)
    source = "" if origin == "environment" else f" (from the {origin})"
    why = f" ({error})" if str(error) else ""
    return f"{variable(name)}={shown}{source} cannot be used{why}; accepted: {row.kind.accepts}"
