"""The stand-in itself, as tests hold it; it serves from a thread of its own.

with Platform() as platform:
    worker = platform.start_worker([python, "handler.py"])    # or your own Popen with
                                                              # env=platform.worker_env()
    job = platform.submit({"function_name": ...})
    record = platform.wait(job)                               # until it is final
    assert record.status is Status.COMPLETED and record.done_count == 1
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from support.cloud.faults import Fault
from support.cloud.records import Exchange, JobRecord, Ping

T = TypeVar("T")

#: The endpoint that exists from the start; nobody has to provision it.
ENDPOINT: Final = "ep-local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """Where everything is."""

    base: str  #: http://127.0.0.1:port
    data: str  #: ../v2, RUNPOD_ENDPOINT_BASE_URL
    api: str  #: RUNPOD_API_BASE_URL, which has /graphql
    rest: str
    hapi: str
    console: str


class Platform:
    """RunPod's cloud on loopback: worker side, client side and control plane."""

    def __init__(
        self,
        *,
        worker: "Sequence[str] | None" = None,
        worker_variables: Mapping[str, str] | None = None,
        poll_s: float = 1.0,
        execution_timeout_s: float = 600.0,
        gone: int = 200,
    ) -> None:
        """
        ``worker``: the command that a provisioned endpoint's worker is started with.
        ``poll_s``: how long job-take and job-stop are held open when there is nothing.
        ``execution_timeout_s``: for jobs without `policy.executionTimeout`.
        ``gone``: the answer to a job-done for a job that has ended already.
        """

    def start(self) -> "Platform": ...

    def stop(self) -> None:
        """Ends its workers (SIGTERM, then SIGKILL) and its server; also on leaving `with`."""

    def urls(self) -> Urls: ...

    def worker_env(self, endpoint: str = ENDPOINT, *, worker: str | None = None) -> dict[str, str]:
        """What the platform adds to a worker's environment; each call is a new pod."""

    def client_env(self) -> dict[str, str]:
        """What leads the real client here."""

    # Jobs

    def submit(
        self,
        input: Any,
        *,
        endpoint: str = ENDPOINT,
        policy: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> str:
        """Put a job in the queue; its id. ``fields`` are handed to the worker beside `input`."""

    def job(self, job: str) -> JobRecord: ...

    def jobs(self, endpoint: str | None = None) -> list[JobRecord]: ...

    def wait(self, job: str, seconds: float = 30.0) -> JobRecord:
        """Until it is final."""

    def wait_all(self, jobs: Sequence[str], seconds: float = 60.0) -> list[JobRecord]: ...

    def until(self, holds: Callable[[], T], seconds: float = 30.0) -> T:
        """Until it is true; asked again whenever something has changed. Its value."""

    def cancel(self, job: str) -> None:
        """As a client's POST cancel: CANCELLED at once, and the worker is told to stop it."""

    def send_stop(self, job: str, *, worker: str | None = None) -> None:
        """Tell the worker to stop it, and nothing else: the job stays as it is."""

    # Faults

    def script(self, *faults: Fault) -> None: ...

    def clear_faults(self) -> None:
        """Forget them all; what hangs goes on."""

    # What happened

    def exchanges(
        self, verb: str | None = None, *, job: str | None = None, worker: str | None = None
    ) -> list[Exchange]: ...

    def pings(self, worker: str | None = None) -> list[Ping]: ...
