"""The queue front-end: jobs of RunPod's queue through `runpod.serverless.start`.

    variables, flags --> serve_qb --> runpod.serverless.start
       |                               |-- a queue (RUNPOD_WEBHOOK_GET_JOB): `loop`
       `- ModeError, OpenServerError   |-- --rp_serve_api: the SDK's API   }  `local_modes`
                                       `-- --test_input: one job           }

    no resource is named --> `job_runners.LiveJobs`: each job is a call
    a resource is named  --> `deployed.app_jobs.AppJobs`: its jobs run in workers of its app

The SDK starts its own loop, on which the pool runs. Only modules that this module imports while it
runs import `runpod`, so the load-balanced server never imports it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flashpool.frontends import modes
from flashpool.frontends.admin import Admin, JobCounts, JobsStats, Served, stats_url
from flashpool.frontends.admin.listener import open_socket
from flashpool.frontends.assembly import make_service
from flashpool.frontends.exposure import OpenServerError, check_admin, is_loopback
from flashpool.frontends.server_process import harden, raise_descriptors
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings

if TYPE_CHECKING:
    from .job_runners import JobRunner
    from .worker import QueueWorker

_log = logging.getLogger(__name__)

_LAST_PORT: Final = 65535
#: A file with the job that the SDK runs if it has no other; the variable that names a queue.
_JOB_FILE: Final = Path("test_input.json")
_QUEUE: Final = "RUNPOD_WEBHOOK_GET_JOB"
_REALTIME: Final = "RUNPOD_REALTIME_PORT"
_SDK_LEVELS: Final = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR"}


class UnknownSdk(Exception):
    """The installed runpod is not a version that flashpool can drive."""


class FlagError(Exception):
    """A flag or variable is invalid, on which the SDK would print a traceback."""


def serve_qb(settings: Settings, given: list[str]) -> None:
    """Serve jobs until a signal, or in the local mode that the SDK's flags name."""
    mode = modes.of_queue(os.environ)
    check_admin(settings)
    _set_defaults(settings)
    from . import sdk

    if missing := sdk.missing_parts():
        raise UnknownSdk(
            f"The installed runpod has no {', '.join(missing)}: flashpool drives version 1.12"
        )
    flags = sdk.arguments(given)
    _check_api(settings, flags)
    _check_job(flags)
    _check_purpose(flags)
    raise_descriptors(settings)
    harden()
    # Before the loop handles signals itself, and after the SDK's API has closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Queue(settings, mode).start(given, flags)


class Queue:
    """Creates the parts of the front-end, when the SDK's loop runs."""

    def __init__(self, settings: Settings, mode: modes.Mode) -> None:
        self._settings = settings
        self._is_deployed = mode is modes.Mode.DEPLOYED_QUEUE
        self._admin_socket: socket.socket | None = None
        self._worker: QueueWorker | None = None
        self._counts = JobCounts()

    def start(self, given: list[str], flags: Any) -> None:
        """Run until a signal stops the worker."""
        from . import sdk
        from .local_modes import LocalHandler

        serves_api = flags.rp_serve_api or _is_realtime()
        if serves_api or (sdk.has_queue() and not flags.test_input):
            self._admin_socket = open_socket(self._settings)
            where = stats_url(self._admin_socket)
            if self._is_deployed:
                resource = modes.resource(os.environ)
                _log.info("Jobs of the resource %s; stats: %s", resource, where)
            else:
                slots = self._settings.slots
                _log.info("Live jobs, on slots: %d; stats: %s", slots, where)
        local = LocalHandler(self._settings, self._open, self._counts)
        try:
            sdk.start(
                given,
                local,
                self._concurrency,
                self._make_worker,
                local if serves_api else None,
                self._settings.drain_s,
            )
        finally:
            if self._admin_socket is not None:
                self._admin_socket.close()

    def _open(self) -> tuple[JobRunner, Admin | None]:
        from .worker import result_limit, result_setting

        settings = self._settings
        service = make_service(settings, result_limit(settings), result_setting(settings))
        sock = self._admin_socket
        served = replace(Served.of(service, self._settings, "queue"), jobs=self._jobs)
        admin = None if sock is None else Admin(served, sock)
        return self._runner(service), admin

    def _runner(self, service: Service) -> JobRunner:
        from .worker import report_limit, result_limit, spill_of

        settings = self._settings
        limit, spill = report_limit(settings), spill_of(settings)
        if not self._is_deployed:
            from .job_runners import LiveJobs

            return LiveJobs(settings, service, limit, spill)
        from flashpool.frontends.apps.preparation import AppSource

        from .deployed.app_jobs import AppJobs

        return AppJobs(
            settings,
            service,
            AppSource(settings, os.environ, modes.resource(os.environ)),
            report_limit=limit,
            result_limit=result_limit(settings),
            spill=spill,
        )

    def _make_worker(self) -> QueueWorker:
        from . import sdk
        from .worker import QueueWorker

        runner, admin = self._open()
        self._worker = QueueWorker(
            self._settings, runner, sdk.session(), sdk.addresses(), admin, self._counts
        )
        return self._worker

    def _jobs(self) -> JobsStats:
        return self._counts.stats(0) if self._worker is None else self._worker.stats()

    def _concurrency(self, current: int) -> int:
        return current if self._worker is None else self._worker.concurrency(current)


def _set_defaults(settings: Settings) -> None:
    """Set defaults of the SDK's own variables, which it reads when it is imported."""
    # The SDK's checks contact a public name server, and end the process if it does not answer.
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    port = os.environ.get(_REALTIME, "").strip() or "0"
    if not (port.isdecimal() and int(port) <= _LAST_PORT):
        raise FlagError(f"{_REALTIME}={port!r} is not a port")
    os.environ[_REALTIME] = port
    if "RUNPOD_DEBUG_LEVEL" not in os.environ:
        os.environ.setdefault("RUNPOD_LOG_LEVEL", _SDK_LEVELS[settings.log_level])


def _check_job(flags: Any) -> None:
    """Check the job of the command line, or of the file that the SDK reads without one."""
    if flags.test_input:
        given, source = flags.test_input, "--test_input"
    elif _JOB_FILE.is_file() and not flags.rp_serve_api and _QUEUE not in os.environ:
        given, source = _JOB_FILE.read_text("utf-8", "replace"), str(_JOB_FILE)
    else:
        return
    try:
        value = json.loads(given)
        if isinstance(value, dict):
            return
        problem = f"it is {given.strip()[:40]!r}"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise FlagError(f'{source} must be a JSON object such as {{"input": {{...}}}}: {problem}')


def _check_purpose(flags: Any) -> None:
    """Explain every way to get jobs; the SDK's message would only mention test_input.json."""
    given = flags.test_input or flags.rp_serve_api or _is_realtime() or _QUEUE in os.environ
    if not given and not _JOB_FILE.is_file():
        raise FlagError(
            f"There are no jobs to serve: {_QUEUE}, which RunPod's pods have, is not set. "
            "Without a cloud: --rp_serve_api serves a queue on loopback; --test_input "
            f"'{{\"input\": {{...}}}}' runs one job, and so does a {_JOB_FILE} in this directory"
        )


def _check_api(settings: Settings, flags: Any) -> None:
    """Refuse the SDK's API, which has no token and runs any client's code, on open addresses."""
    if not 0 <= flags.rp_api_port <= _LAST_PORT:
        raise FlagError(f"--rp_api_port {flags.rp_api_port} is not a port")
    if settings.allow_open:
        return
    if flags.rp_serve_api:
        if not is_loopback(flags.rp_api_host):
            raise _open_api(flags.rp_api_host, "Use --rp_api_host localhost")
    elif _is_realtime():
        if not settings.on_pod:
            raise _open_api("every address", f"Unset {_REALTIME}")
        _log.warning("Serving %s without a token: the platform is the only guard", _REALTIME)


def _is_realtime() -> bool:
    """Return whether the SDK serves its API on every address, at the platform's port."""
    return os.environ[_REALTIME] != "0"


def _open_api(where: str, instead: str) -> OpenServerError:
    return OpenServerError(
        f"Refusing to serve the SDK's API on {where}: it has no token, and every client that reaches it could "
        f"run code here. {instead} or, where the network itself is guarded, set "
        "FLASHPOOL_ALLOW_OPEN=yes."
    )
