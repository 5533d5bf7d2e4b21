"""Ceilings over limits of requests, and fields that the operator forbids."""

from __future__ import annotations

from dataclasses import dataclass

from flashpool.pool.errors import InvalidRequest

from .schema import FunctionRequest
from .settings.table import Settings

__all__ = ["Ceilings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The limits that the operator sets; None or empty: requests are not restricted."""

    timeout_s: float | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    #: Names of features, from `settings.calls.FORBIDDABLE`.
    forbidden: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Ceilings:
        """Return the ceilings that the settings contain."""
        return cls(
            timeout_s=settings.max_timeout_s,
            memory_mb=settings.max_memory_mb,
            gpus=settings.max_gpus_per_call,
            forbidden=settings.forbid,
        )

    def __bool__(self) -> bool:
        return self != Ceilings()

    def check(self, request: FunctionRequest) -> None:
        """Raise InvalidRequest for a request beyond a ceiling.

        Raises:
            InvalidRequest: the message names the setting that forbids the request.
        """
        for what, asked, most, setting in (
            ("timeout_s", request.timeout_s, self.timeout_s, "FLASHPOOL_MAX_TIMEOUT_S"),
            ("memory_mb", request.memory_mb, self.memory_mb, "FLASHPOOL_MAX_MEMORY_MB"),
            ("gpus", request.gpus, self.gpus, "FLASHPOOL_MAX_GPUS_PER_CALL"),
        ):
            if asked is not None and most is not None and asked > most:
                raise InvalidRequest(
                    f"{what} is {asked:g}, and this server allows {most:g} at most ({setting})"
                )
        for name in self.forbidden:
            if request.execution_type == name or getattr(request, name, None):
                what = "classes" if name == "class" else name
                raise InvalidRequest(
                    f"this server refuses requests with {what} (FLASHPOOL_FORBID={name})"
                )
