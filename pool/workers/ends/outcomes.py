"""How calls finished, as `Outcome`: decisions of the supervisor, in words for the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from flashpool.envs.import_names import providers_of
from flashpool.pool import exit_causes
from flashpool.pool._child import wire
from flashpool.pool.calls import Outcome, Phase, Receipt
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.exit_causes import Cause, Stop
from flashpool.pool.instance_records import InstanceRecord
from flashpool.pool.workers.worker import ActiveCall


def answered(
    running: ActiveCall,
    frame: wire.Frame,
    meta: wire.ResultMeta,
    now: float,
    instance: InstanceRecord | None = None,
    warnings: tuple[str, ...] = (),
) -> Outcome:
    """Return the outcome for a RESULT: a value, or the exception that user code raised.

    ``instance``: the instance the call ran in, if any.
    """
    cost = receipt(running, now, run_s=meta.run_s, peak_rss_mb=_mb(meta.rss_kb))
    output = _written(running)
    if meta.ok:
        return Outcome(
            body=frame.body,
            fds=running.fds_of(frame) if frame.fds else (),
            format=meta.form,
            output=output,
            receipt=cost,
            instance=instance,
            warnings=warnings,
        )
    return Outcome(
        error_type=meta.more["error_type"],
        error=_error(running, meta.more),
        exception=frame.body or None,
        details=meta.more.get("details", {}),
        from_user=meta.more.get("user", False),
        output=output,
        receipt=cost,
        instance=instance,
        warnings=warnings,
    )


def _error(running: ActiveCall, more: Mapping[str, Any]) -> str:
    """Return the worker's message, with the name of the setting that limited the result, which the
    worker does not know.
    """
    error: str = more["error"]
    setting = running.limits.result_setting
    if more["error_type"] == "ResultTooLarge" and not more.get("user") and setting:
        return f"{error} {setting} sets the limit."
    return error


def told(outcome: Outcome, remedy: str) -> str:
    """Return the outcome's error text; if a module is missing, with advice as the last line."""
    error, module = outcome.error or "", outcome.details.get("missing_module")
    if not (outcome.from_user and isinstance(module, str)):
        return error
    provided = ""
    if packages := providers_of(module):
        first, *rest = packages
        provided = f", which the package {first} provides" + "".join(
            f" (or {name})" for name in rest
        )
        remedy = remedy.replace("a-package", first)
    return (
        f"{error.rstrip()}\n\nThe call's environment has no module {module!r}{provided}: {remedy}."
    )


def unserved(running: ActiveCall, outcome: Outcome, now: float) -> Outcome:
    """Return the outcome of a call that got no worker, with a receipt of its wait."""
    return replace(outcome, receipt=receipt(running, now))


def failed(running: ActiveCall, cause: Cause, now: float, death: wire.Exited | None) -> Outcome:
    """Return the outcome of a call whose worker exited without a RESULT.

    ``death``: the zygote's report of the exit, if any.
    """
    peak = _mb(death.rss_kb) if death else None
    exit_words = exit_causes.exit_words(death.status) if death else None
    return Outcome(
        error_type=cause.error_type,
        error=cause.message,
        details=cause.details,
        output=_written(running, ours=False),
        receipt=receipt(running, now, peak_rss_mb=peak, exit_words=exit_words),
    )


def cancelled(running: ActiveCall, reason: str, now: float) -> Outcome:
    """Return the outcome of a call that its caller, or the pool, no longer needs."""
    return Outcome(
        error_type="Cancelled",
        error=f"the call was cancelled: {reason}",
        details={"reason": reason},
        output=_written(running),
        receipt=receipt(running, now),
    )


def _written(running: ActiveCall, *, ours: bool = True) -> bytes:
    written = running.written
    return written.value(ours=ours) if written is not None else b""


def start_failed(environment: str, reason: str) -> Outcome:
    """Return the outcome of a call whose zygote does not start."""
    return Outcome(
        error_type="EnvironmentStartFailed",
        error=f"the interpreter of environment {environment!r} does not start: {reason}",
        details={"environment": environment, "reason": reason, "phase": Phase.START.value},
    )


def queued_too_long(running: ActiveCall, now: float) -> Outcome:
    """Return the outcome of a call that waited too long for a slot or for GPUs."""
    waited = now - running.submitted_at
    number = running.gpus_wanted
    what = f"{number} free GPU{'s'[: number > 1]}" if number else "a free slot"
    advice = "" if number else ", or give the server more slots"
    return Outcome(
        error_type="Timeout",
        error=f"the call waited {waited:.1f} s for {what}, longer than its limit of {running.limits.queue_s:g} s (phase: "
        f"queue). Send the call again later{advice}.",
        details={"phase": Phase.QUEUE.value, "limit_s": running.limits.queue_s},
    )


def no_scratch(error: OSError) -> Outcome:
    """Return the outcome of a call whose scratch directory cannot be created."""
    return Outcome(
        error_type="WorkerCrashed",
        error=f"the scratch directory of the call cannot be created: {error}. Does the "
        "server's temporary directory (TMPDIR) have free space, and may the server "
        "write there?",
        details={"phase": Phase.START.value},
    )


def loaded_too_long(running: ActiveCall) -> Outcome:
    """Return the outcome of a call whose instance was not created within the call's time limit."""
    limit = running.limits.run_s
    return Outcome(
        error_type="Timeout",
        error=f"the instance of the call was not created within its time limit of {limit:g} s (phase: start). "
        "Raise timeout_s if the constructor needs longer.",
        details={"phase": Phase.START.value, "limit_s": limit},
    )


def refused(error: FlashpoolError) -> Outcome:
    """Return the outcome of a call that is refused with this error after it was accepted."""
    return Outcome(
        error_type=type(error).__name__, error=error.message, details=dict(error.details)
    )


def instance_refused(instance: str, reason: str) -> Outcome:
    """Return the outcome of a call whose instance cannot be created now."""
    return Outcome(
        error_type="WorkerCrashed",
        error=f"the instance {instance!r} cannot be created: {reason}.",
        details={"instance": instance, "reason": reason, "phase": Phase.START.value},
    )


def instance_lost_words(instance: str, reason: str) -> str:
    """Return the message for a call that requires an instance which no longer exists."""
    return (
        f"the instance {instance!r} does not exist, and its state is lost: {reason}. To "
        "have it created again, leave out instance_must_exist in a request, or pass "
        "rebuild=True to Pool.instance"
    )


def instance_lost(instance: str, reason: str) -> Outcome:
    """Return the outcome of a call whose instance was lost while the call waited."""
    return Outcome(
        error_type="InstanceLost",
        error=instance_lost_words(instance, reason),
        details={"instance": instance, "reason": reason},
    )


def sibling_lost(reason: str) -> Stop:
    """Return the reason for a call whose resident was stopped because of another call."""
    return Stop(
        error_type="ResidentLost",
        message=f"the instance that the call ran in was stopped because of another call: "
        f"{reason}. This call did not cause it, and may be sent again.",
        details={"reason": reason},
    )


def ran_too_long(limit: float) -> Stop:
    """Return the reason for stopping a call that exceeded its time limit."""
    return Stop(
        error_type="Timeout",
        message=f"the call ran longer than its time limit of {limit:g} s (phase: run) and was stopped, with every process it had started. Raise "
        "timeout_s if it needs longer; the stacks below, if any, show where it was.",
        details={"phase": Phase.RUN.value, "limit_s": limit},
    )


def used_too_much(limit_mb: int, measured: int) -> Stop:
    """Return the reason for stopping a call whose process tree exceeded its memory limit."""
    # Rounded up, or 100.3 MB would read "used 100 MB, and the limit is 100 MB".
    measured_mb = -(-measured >> 20)
    evidence = f"its processes used {measured_mb} MB, and the limit is {limit_mb} MB"
    return Stop(
        error_type="OutOfMemory",
        message=f"the call was stopped because it used too much memory: {evidence}. Use less, or raise memory_mb.",
        details={
            "evidence": evidence,
            "confidence": "certain",
            "limit_mb": limit_mb,
            "measured_mb": measured_mb,
        },
    )


def _mb(kb: int) -> float:
    """Convert to megabytes, rounded to a tenth."""
    return int(kb / 102.4 + 0.5) / 10


def receipt(
    running: ActiveCall,
    now: float,
    *,
    run_s: float | None = None,
    peak_rss_mb: float | None = None,
    exit_words: str | None = None,
) -> Receipt:
    """Return the receipt of a call up to now."""
    worker = running.worker
    dispatched = running.dispatched_at
    if worker is None or dispatched is None:
        waited = now - running.submitted_at
        return Receipt(
            queue_s=waited,
            total_s=waited,
            provision=running.call.provision,
            attempts=running.attempts - 1,
            call_id=running.id,
        )
    ran = now - dispatched
    if run_s is not None and 0.0 <= run_s < ran:  # else user code changed its process' clock
        ran = run_s
    # The call may have arrived while its zygote was still starting.
    up_at = worker.zygote.ready_at or 0.0
    starting_s = max(0.0, min(up_at, dispatched) - running.submitted_at)
    return Receipt(
        queue_s=dispatched - running.submitted_at - starting_s,
        start_s=starting_s + max(0.0, now - dispatched - ran),
        run_s=ran,
        total_s=now - running.submitted_at,
        peak_rss_mb=peak_rss_mb,
        provision=running.call.provision,
        start_method=worker.zygote.method,
        preloaded=worker.zygote.has_preloaded,
        attempts=running.attempts,
        gpus=running.gpus,
        pid=worker.pid,
        exit=exit_words,
        call_id=running.id,
    )


@cache
def runtime_packages() -> dict[str, str]:
    """Return the folders of packages that the worker's runtime needs, for interpreters that lack
    them.
    """
    import cloudpickle
    import tblib

    return {
        package.__name__: str(Path(package.__file__).parent) for package in (cloudpickle, tblib)
    }
