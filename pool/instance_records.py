"""The instance in which a call ran, as shown in the call's answer."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NamedTuple


class Elsewhere(NamedTuple):
    """Another pod that has, or had, an instance of the same id."""

    pod: str
    lives: bool
    last_used_at: float

    def warning(self, instance: str) -> str:
        """Return the warning for the caller."""
        if self.lives:
            return (
                f"instance {instance!r} also lives on pod {self.pod}, with a state of its own: "
                "send all calls of an instance to one pod"
            )
        at = _utc(self.last_used_at)
        return f"instance {instance!r} lived on pod {self.pod} ({at}), and its state is lost"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"pod": self.pod, "lives": self.lives, "last_used": _utc(self.last_used_at)}


class InstanceRecord(NamedTuple):
    """The instance that a call ran in, as its answer shows it. Times are seconds since 1970."""

    instance: str
    class_name: str
    created_at: float
    last_used_at: float
    #: Calls that began in the instance, including this one.
    method_calls: int
    #: How many instances have been created under this name, including this one.
    generation: int
    #: Why the previous instance ended, if this one replaced it.
    rebuilt_because: str | None = None
    #: Whether this call's constructor arguments are the instance's.
    same_arguments: bool = True
    #: Why the instance ended with this call, or None.
    ended_because: str | None = None
    #: Another pod that has, or had, an instance of the same id.
    elsewhere: Elsewhere | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, in the form of a response's ``instance_info``."""
        return {
            "class_name": self.class_name,
            "created_at": _utc(self.created_at),
            "last_used": _utc(self.last_used_at),
            "method_calls": self.method_calls,
            "generation": self.generation,
            "rebuilt": self.rebuilt_because is not None,
            "rebuilt_because": self.rebuilt_because,
            "same_arguments": self.same_arguments,
            "ended_because": self.ended_because,
            "elsewhere": None if self.elsewhere is None else self.elsewhere.as_dict(),
        }


def _utc(at: float) -> str:
    second = int(at)
    return f"{_utc_second(second)}.{int((at - second) * 1000):03d}+00:00"


@lru_cache(maxsize=1024)
def _utc_second(at: int) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
