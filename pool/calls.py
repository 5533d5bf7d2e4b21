"""What goes into the pool and what comes out: `Call`, `Outcome`, `Receipt`.

A front-end creates a `Call` (bytes that the pool never reads, and limits) and submits it to a
`backend.Backend` with a `Sink`. The backend notifies the sink on its loop: progress of the
environment, output as it is written, items of a generator as they are yielded, and exactly one
`Outcome`.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from . import call_ids
from .instance_records import InstanceRecord
from .trace_context import TraceContext

if TYPE_CHECKING:
    from flashpool.envs import Spec

#: The environment of calls that name no packages: the base interpreter, unchanged.
BASE_ENVIRONMENT: Final = "base"
#: The least time to run that `CallLimits.build_and_run_s` leaves to a call.
LEAST_RUN_S: Final = 0.05


class Codec(enum.Enum):
    """How a worker reads the body of a call and writes its result."""

    #: A JSON FunctionRequest; the result is base64 text of a cloudpickle (or JSON text
    #: when the request says ``serialization_format: json``).
    FLASH = "flash"
    #: Pickled callable and arguments, large buffers in descriptors beside them.
    PICKLE = "pickle"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Limits of one call. ``None``: the pool's default; in a default: no limit."""

    #: Seconds of running, from the moment a worker has the call.
    run_s: float | None = None
    #: Seconds of running after which an exception (`SoftTimeout`) is raised in the call.
    soft_s: float | None = None
    #: Seconds in the queue.
    queue_s: float | None = None
    #: Mebibytes of memory of the call's whole process tree.
    memory_mb: int | None = None
    #: Bytes of encoded result; and the name of the setting that sets this limit, for messages.
    result_bytes: int | None = None
    result_setting: str = ""
    #: Seconds that finding the environment and running may take together: `after_build` limits
    #: ``run_s`` to what is left of them.
    build_and_run_s: float | None = None

    def or_else(self, defaults: CallLimits) -> CallLimits:
        """Return these limits, with defaults for those that are None."""
        return CallLimits(
            run_s=defaults.run_s if self.run_s is None else self.run_s,
            soft_s=defaults.soft_s if self.soft_s is None else self.soft_s,
            queue_s=defaults.queue_s if self.queue_s is None else self.queue_s,
            memory_mb=defaults.memory_mb if self.memory_mb is None else self.memory_mb,
            result_bytes=defaults.result_bytes if self.result_bytes is None else self.result_bytes,
            result_setting=self.result_setting or defaults.result_setting,
        )

    def after_build(self, seconds: float) -> CallLimits:
        """Return the limits that are left after finding the environment took ``seconds``."""
        if self.build_and_run_s is None:
            return self
        left = max(self.build_and_run_s - seconds, LEAST_RUN_S)
        run_s = left if self.run_s is None else min(self.run_s, left)
        return replace(self, run_s=run_s, build_and_run_s=None)


#: Separates an environment's digest from the number of its copy.
COPY: Final = "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """The environment that a call was given, and how long finding it took."""

    #: Name in the pool: ``base``, or the digest, followed by a number (`COPY`) if processes still
    #: run in an earlier copy.
    environment: str = BASE_ENVIRONMENT
    #: ``base``, ``memo``, ``disk``, ``archive`` or ``built``; ``failed`` if it was not available;
    #: empty if no environment was looked for.
    origin: str = "base"
    resolve_s: float = 0.0
    fetch_s: float = 0.0
    build_s: float = 0.0

    @property
    def digest(self) -> str:
        """``base``, or the digest: the same for each copy."""
        return self.environment.partition(COPY)[0]


def unprovided(seconds: float, phase: str) -> Provision:
    """Return the time spent on an environment that failed, all under the step that failed."""
    resolving = phase in ("spec", "resolve")
    return Provision(
        environment="",
        origin="failed",
        resolve_s=seconds if resolving else 0.0,
        build_s=0.0 if resolving else seconds,
    )


_BASE: Final = Provision()
#: For calls that were refused before, or after, an environment was looked for.
NOWHERE: Final = Provision(environment="", origin="")


@dataclass(slots=True, kw_only=True)
class Call:
    """One function or method to run. The pool never reads ``body``.

    No code changes a call. The class is not declared frozen, because creating a frozen object takes
    three times as long; the same holds for `Outcome`.
    """

    codec: Codec
    body: bytes
    #: Descriptors that travel beside the body. Once the call is submitted the pool owns them, and
    #: closes them when they were sent or the call ended.
    fds: tuple[int, ...] = ()
    #: Name of the call in statistics and messages.
    label: str = "call"
    #: The caller's own id for the call, if any.
    request_id: str = ""
    #: Equal for calls of the same code: modules that one call imported are preloaded for the next.
    function_key: Hashable = None
    #: The source of the function that the label names, as JSON text, if the zygote may compile it
    #: ahead of the next call.
    source: bytes = b""
    #: The packages of the call's environment, until the environment is found; None: `provision`
    #: names the environment.
    spec: Spec | None = None
    provision: Provision = _BASE
    #: The instance of a method call; None: a function, in a process of its own.
    want: InstanceRequest | None = None
    limits: CallLimits = field(default_factory=CallLimits)
    #: Number of GPUs; None: the pool's default.
    gpus: int | None = None
    #: What the call touches, as far as its request says, and the packages that its source imports:
    #: `scheduling.preloading`.
    touches: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    #: Seed of the call's random numbers; None: they come from entropy.
    seed: int | None = None
    #: Environment variables of this call alone.
    env: Mapping[str, str] = field(default_factory=dict)
    #: Whether the call has a directory of its own as working directory and ``TMPDIR``, which is
    #: removed with the call.
    scratch: bool = False
    #: Whether items of a generator go to the sink one by one; otherwise they are collected into a
    #: list.
    stream: bool = False
    #: Whether the outcome waits until the call's exit is over, even if threads or hooks still run.
    awaits_exit: bool = False
    #: Whether the call may run again after its worker died half-way.
    idempotent: bool = False
    #: The call's place in a trace, which its environment variables hold; None: it is not traced.
    trace: TraceContext | None = None

    @property
    def environment(self) -> str:
        """The name of the call's environment in the pool."""
        return self.provision.environment

    def provided(self, provision: Provision, seconds: float) -> Call:
        """Return the call in the environment that was found for its spec, within ``seconds``."""
        want = self.want
        if want is not None and want.code is not None and provision.environment != BASE_ENVIRONMENT:
            want = want._replace(code=(want.code, provision.digest))
        limits = self.limits.after_build(seconds)
        return replace(self, spec=None, provision=provision, want=want, limits=limits)


class Phase(enum.Enum):
    """Where a call is; the phase of a `Timeout` is one of these values."""

    QUEUE = "queue"
    BUILD = "build"
    START = "start"
    RUN = "run"
    EXIT = "exit"
    DONE = "done"


class Receipt(NamedTuple):
    """What a call cost and where it ran; `as_dict` returns it for JSON.

    A tuple, because every call creates one, and creating a frozen object takes three times as long.
    Seconds are of the monotonic clock. Those of the environment (resolve, fetch, build) passed
    before the call was submitted, and are not in ``total_s``. The time that a call waited for its
    interpreter to start counts as ``start_s``, not as ``queue_s``. ``exit_s`` is the time that the
    answer waited for threads, exit hooks and finalizers of the function. ``attempts`` is 0 if no
    worker received the call. ``exit`` is ``"clean"``, ``"exit N"`` or ``"signal NAME"``, or None
    while the worker was still exiting.
    """

    queue_s: float = 0.0
    start_s: float = 0.0
    run_s: float = 0.0
    exit_s: float = 0.0
    total_s: float = 0.0
    peak_rss_mb: float | None = None
    provision: Provision = _BASE
    start_method: str | None = None
    preloaded: bool = False
    attempts: int = 0
    gpus: tuple[str, ...] = ()
    pid: int | None = None
    exit: str | None = None
    #: The call's number in this process, from which `call_ids` makes its name; 0: it never became a
    #: call.
    call_id: int = 0

    @property
    def environment(self) -> str:
        """``base``, or the digest of the environment."""
        return self.provision.digest

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, in the form of a response's ``receipt``."""
        provision = self.provision
        origin = provision.origin
        seconds = {
            "resolve": provision.resolve_s,
            "fetch": provision.fetch_s,
            "build": provision.build_s,
            "queue": self.queue_s,
            "start": self.start_s,
            "run": self.run_s,
            "exit": self.exit_s,
            "total": self.total_s,
        }
        for phase, value in seconds.items():
            # Round to microseconds; the built-in `round` is slower, because it converts to text.
            seconds[phase] = int(value * 1e6 + 0.5) / 1e6
        return {
            "call_id": f"{call_ids.prefix}-{self.call_id}" if self.call_id else None,
            "seconds": seconds,
            "peak_rss_mb": self.peak_rss_mb,
            "environment": provision.digest or None,
            "environment_origin": origin or None,
            "environment_hit": origin not in ("built", "failed") if origin else None,
            "start_method": self.start_method,
            "preloaded": self.preloaded,
            "attempts": self.attempts,
            "gpus": list(self.gpus),
            "pid": self.pid,
            "exit": self.exit,
        }


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The one outcome of a call.

    A result has ``error_type`` None and the encoded result in ``body`` (and ``fds``, which the
    receiver owns). Everything else is a failure: ``error_type`` is the user exception's class name
    or one of `errors.BY_NAME`; ``error`` is message and formatted traceback; ``exception`` is the
    tblib-pickled exception if it can be pickled, and ``details`` always holds plain data about it.
    """

    body: bytes = b""
    fds: tuple[int, ...] = ()
    #: ``"pickle"``, ``"json"`` or ``"stream"`` (the items went to the sink).
    format: str = "pickle"
    error_type: str | None = None
    error: str | None = None
    exception: bytes | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    #: Whether user code raised the error; False: the pool ended the call.
    from_user: bool = False
    #: Output on descriptors 1 and 2, bounded, with a marker where it was cut.
    output: bytes = b""
    receipt: Receipt = field(default_factory=Receipt)
    instance: InstanceRecord | None = None
    #: Remarks about the request; front-ends add them, and the pool does not read them.
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the call ended with a result."""
        return self.error_type is None


class Sink(Protocol):
    """Receives the events of one call, on the backend's loop; must not block.

    If a sink has a method ``started()``, it is called when a worker receives the call.
    """

    #: Whether `output` is called with live chunks; otherwise all output is in the outcome only.
    wants_output: bool

    def told(self, line: str) -> None:
        """Receive a progress line about the environment that the call waits for."""

    def environment_ready(self) -> None:
        """Note that the environment is ready and the call waits for a slot; only with a spec."""

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Receive bytes that the call wrote to descriptor 1, or to 2.

        ``stderr``: to 2, if the backend separates these.
        """

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Receive one encoded item of a streaming call; answer with `Backend.credit`."""

    def done(self, outcome: Outcome) -> None:
        """Receive the outcome; called exactly once, and last."""


class InstanceRequest(NamedTuple):
    """The instance that a call is for. A tuple, because every call creates one."""

    instance: str
    #: Equal for calls that mean the same class and resources; the backend adds the environment.
    #: None: only this caller knows the name, so there is nothing to compare.
    code: object
    class_name: str = ""
    #: Equal for calls with the same constructor arguments.
    arguments: object = None
    method: str = "__call__"
    #: Calls to async methods that may run at once in the instance.
    concurrency: int = 1
    #: Whether to replace an existing instance.
    anew: bool = False
    #: What a worker creates the instance from, which the pool does not read; None: the body of the
    #: call.
    load: bytes | None = None
    #: Whether an instance of this generation (0: any) must exist. The call is refused if the
    #: instance is gone, unless ``generation`` is 1 and no instance of this name has existed: then
    #: it is created.
    must_exist: bool = False
    generation: int = 0
    #: Whether the caller gave no name and may not call the instance again: it is closed before
    #: others.
    unnamed: bool = False
