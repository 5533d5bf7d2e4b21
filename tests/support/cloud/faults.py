"""Faults that a test can make the stand-in produce.

A fault hits the next matching requests of its verb, `times` of them, or all of them within `for_s`;
after that it is used up. If several match, the one scripted first acts.

    Fault.answers("job-take", 429)                    once
    Fault.answers("job-done", 500, times=2)
    Fault.answers("job-done", 500, for_s=60)          every one, for a minute from now
    Fault.answers("job-done", 500, carried_out=True)  the result is kept, the answer lost
    Fault.bad_json("job-take")
    Fault.hangs("job-take", times=None)               for ever: until `clear_faults`
    Fault.cuts("job-done")                            the connection ends without an answer
    Fault.slow("job-stream", 0.5, times=None)         a consumer that takes its time
    Fault.duplicates()                                the next job is handed out twice
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A scripted fault; see the module."""

    #: The verb of the URL; "job-take" includes "job-take-batch". "duplicate" is not a request: it
    #: hits the distribution of a job.
    on: str
    #: How many requests it hits; None: any number.
    times: int | None = 1
    #: How many matching requests pass before it acts.
    skip: int = 0
    #: It ends this long after it was scripted.
    for_s: float | None = None
    #: Only requests about this job, or of this worker.
    job: str | None = None
    worker: str | None = None
    #: Waits that long first.
    delay_s: float = 0.0
    #: Answers nothing until it is cleared or the client leaves.
    hang: bool = False
    #: Ends the connection without an answer.
    cut: bool = False
    #: Status of the answer, instead of the right one.
    status: int | None = None
    body: bytes = b""
    content_type: str = "application/json"
    #: The request takes effect first: only its answer is wrong.
    carried_out: bool = False

    @classmethod
    def answers(
        cls,
        on: str,
        status: int,
        *,
        times: int | None = 1,
        for_s: float | None = None,
        skip: int = 0,
        job: str | None = None,
        carried_out: bool = False,
        body: bytes = b"",
    ) -> "Fault":
        """A status; with ``for_s``, as often as it is asked in that time."""
        return cls(
            on=on,
            status=status,
            times=None if for_s is not None else times,
            for_s=for_s,
            skip=skip,
            job=job,
            carried_out=carried_out,
            body=body,
        )

    @classmethod
    def bad_json(cls, on: str, *, times: int | None = 1, body: bytes = b'{"id": "x", ') -> "Fault":
        return cls(on=on, status=200, body=body, times=times)

    @classmethod
    def hangs(cls, on: str, *, times: int | None = 1, for_s: float | None = None) -> "Fault":
        return cls(on=on, hang=True, times=times, for_s=for_s)

    @classmethod
    def cuts(
        cls, on: str, *, times: int | None = 1, job: str | None = None, carried_out: bool = False
    ) -> "Fault":
        return cls(on=on, cut=True, times=times, job=job, carried_out=carried_out)

    @classmethod
    def slow(cls, on: str, delay_s: float, *, times: int | None = None) -> "Fault":
        return cls(on=on, delay_s=delay_s, times=times)

    @classmethod
    def duplicates(cls, *, times: int | None = 1) -> "Fault":
        return cls(on="duplicate", times=times)


class Script:
    """The faults in force; used on the stand-in's loop."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []

    def add(self, fault: Fault, now: float) -> None:
        self._lines.append(_Line(fault, now))

    def clear(self) -> None:
        self._lines.clear()

    def holds(self, fault: Fault, now: float) -> bool:
        """Return whether the fault is still in force."""
        return any(line.fault is fault and line.in_time(now) for line in self._lines)

    def meets(self, verb: str, *, job: str | None, worker: str | None, now: float) -> Fault | None:
        """Return the fault that hits this request, if any."""
        for line in self._lines:
            if line.matches(verb, job, worker, now) and line.acts():
                return line.fault
        return None


class _Line:
    """A fault, and how often it has been met."""

    def __init__(self, fault: Fault, since: float) -> None:
        self.fault = fault
        self._until = None if fault.for_s is None else since + fault.for_s
        self._seen = 0

    def matches(self, verb: str, job: str | None, worker: str | None, now: float) -> bool:
        fault = self.fault
        return (
            verb.removesuffix("-batch") == fault.on
            and fault.job in {None, job}
            and fault.worker in {None, worker}
            and self.in_time(now)
        )

    def in_time(self, now: float) -> bool:
        return self._until is None or now < self._until

    def acts(self) -> bool:
        """Count the request, and return whether the fault hits it."""
        if self.fault.times is not None and self._seen >= self.fault.skip + self.fault.times:
            return False
        self._seen += 1
        return self._seen > self.fault.skip
