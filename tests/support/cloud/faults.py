"""What a test can have the stand-in do wrong.

A fault meets the next requests of its verb that match, `times` of them, or all of them within
`for_s`; it is used up after that. Of several that match, the one scripted first acts.

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
    """One thing to do wrong; see the module."""

    #: The verb of the URL; "job-take" means "job-take-batch" too.
    on: str
    #: How many requests it meets; None: any number.
    times: int | None = 1
    #: How many that match pass before it acts.
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
    #: Answers this, instead of what is right.
    status: int | None = None
    body: bytes = b""
    content_type: str = "application/json"
    #: The request takes effect first: only its answer is wrong.
    carried_out: bool = False
    #: The job stays in the queue as well.
    duplicate: bool = False

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
        return cls(on="job-take", duplicate=True, times=times)
