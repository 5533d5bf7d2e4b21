"""The errors between a spec and a ready environment.

    EnvironmentFailure            error_type "EnvironmentError"
      SpecRefused                 the request itself: an option, a bad name, a forbidden reference
      InterpreterMissing          this Python is not installed, and must not be downloaded
      ResolutionFailed            no set of versions satisfies the requirements
      RegistryUnreachable         the index did not answer; retryable, never remembered
        CertificateRefused        ... because its certificate is not trusted; not retryable
      SourceRefused               a URL or path does not exist, or contains no package
      BuildFailed                 a package could not be built or installed
        CompilerMissing           ... because a C compiler or a header is missing
      UvKilled                    uv died of a signal; retryable, never remembered
      MachineShort                no process or descriptor left; retryable, never remembered
      VerificationFailed          the built environment does not contain what was requested
      Tampered                    checksums or signature of a stored environment do not match
      DiskFull                    no space, even after an eviction
      QuotaReached                environments in use fill the quota; retryable, never remembered
      StoreUnavailable            the store of environments cannot be used
      SystemPackagesFailed        apt (or nala) failed
      BuildTimeout                error_type "Timeout": the build's limit or the caller's deadline
      BuildAbandoned              the build was cancelled, or the library closed

Each error carries only plain strings, so that it survives pickling: the phase, the requirement, the
tool's own message (trimmed), and advice.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from flashpool.pool._child import shortage

__all__ = [
    "BuildAbandoned",
    "BuildFailed",
    "BuildTimeout",
    "CertificateRefused",
    "CompilerMissing",
    "DiskFull",
    "EnvironmentFailure",
    "InterpreterMissing",
    "MachineShort",
    "QuotaReached",
    "RegistryUnreachable",
    "ResolutionFailed",
    "SourceRefused",
    "SpecRefused",
    "StoreUnavailable",
    "SystemPackagesFailed",
    "Tampered",
    "UvKilled",
    "VerificationFailed",
    "is_full",
]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def _restore(cls: type[EnvironmentFailure], what: str, facts: dict[str, str]) -> EnvironmentFailure:
    return cls(what, **facts)


class EnvironmentFailure(Exception):
    """The root: a requested environment is not available."""

    #: The name a response carries as its `error_type`.
    error_type: ClassVar[str] = "EnvironmentError"
    #: Whether the same request may succeed later.
    retryable: ClassVar[bool] = False
    #: Whether the failure is remembered for a short time.
    remembered: ClassVar[bool] = False
    default_phase: ClassVar[str] = "build"

    def __init__(
        self,
        what: str,
        *,
        phase: str = "",
        requirement: str = "",
        words: str = "",
        advice: str = "",
    ) -> None:
        self.what = what
        self.phase = phase or self.default_phase
        self.requirement = requirement
        self.words = words
        self.advice = advice
        super().__init__(self._message())

    def _message(self) -> str:
        lines = [self.what]
        if self.requirement and self.requirement not in self.what:
            lines.append(f"requirement: {self.requirement}")
        if self.words:
            lines.append(self.words)
        if self.advice:
            lines.append(f"what to do: {self.advice}")
        return "\n".join(lines)

    def but(
        self, *, requirement: str = "", words: str = "", advice: str = ""
    ) -> EnvironmentFailure:
        """Return a copy with facts that were unknown where the error was raised."""
        return type(self)(
            self.what,
            phase=self.phase,
            requirement=requirement or self.requirement,
            words=words or self.words,
            advice=advice or self.advice,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {
            "phase": self.phase,
            "requirement": self.requirement,
            "words": self.words,
            "advice": self.advice,
        }
        return (_restore, (type(self), self.what, facts))


class SpecRefused(EnvironmentFailure):
    """The request names something that no environment may be built from."""

    default_phase = "spec"


class InterpreterMissing(EnvironmentFailure):
    """The Python that was asked for is not installed."""

    default_phase = "resolve"
    remembered = True


class ResolutionFailed(EnvironmentFailure):
    """No set of versions satisfies the requirements."""

    default_phase = "resolve"
    remembered = True


class RegistryUnreachable(EnvironmentFailure):
    """The package index (or a direct URL) did not answer."""

    default_phase = "resolve"
    retryable = True

    def of(self, requirements: Iterable[str]) -> EnvironmentFailure:
        """Return a copy that names what was requested: the tool may name what flashpool added."""
        return self.but(requirement=self.requirement or ", ".join(requirements))


class CertificateRefused(RegistryUnreachable):
    """The index's certificate is not trusted: a forgery, or signed by a private authority."""

    retryable = False


class SourceRefused(EnvironmentFailure):
    """A URL or path does not exist, or contains nothing from which a package can be built."""

    default_phase = "resolve"
    remembered = True


class BuildFailed(EnvironmentFailure):
    """A package could not be built or installed."""

    remembered = True


class CompilerMissing(BuildFailed):
    """A source distribution needs a compiler or a header that this machine lacks."""


class UvKilled(EnvironmentFailure):
    """uv was killed, perhaps by the kernel for memory: nothing is wrong with the request."""

    retryable = True


class MachineShort(EnvironmentFailure):
    """The machine lacks a resource that will come back: nothing is wrong with the request."""

    retryable = True


class VerificationFailed(EnvironmentFailure):
    """The built environment does not contain what was requested."""

    default_phase = "verify"
    remembered = True


class Tampered(EnvironmentFailure):
    """A stored environment or archive does not match its manifest or its signature."""

    default_phase = "verify"


class DiskFull(EnvironmentFailure):
    """The disk is full, even after unused environments were evicted."""

    retryable = True


class QuotaReached(EnvironmentFailure):
    """The quota is full of environments in use, or smaller than one environment."""

    retryable = True


class StoreUnavailable(EnvironmentFailure):
    """Neither the volume nor the local fallback can hold environments."""

    default_phase = "store"
    retryable = True


class SystemPackagesFailed(EnvironmentFailure):
    """The system's package tool failed, or must not be used here."""

    default_phase = "system"
    remembered = True


class BuildTimeout(EnvironmentFailure):
    """The build's own limit, or the caller's deadline, passed first."""

    error_type = "Timeout"
    retryable = True


class BuildAbandoned(EnvironmentFailure):
    """The build was cancelled because no request waits for it, or at shutdown."""

    retryable = True


def short_of(error: BaseException) -> str:
    """Return the resource that the machine lacks (``short of ...``), or an empty text."""
    if isinstance(error, MachineShort):
        return error.what
    what = shortage.of(error)
    return what and f"short of {what}"


def is_full(error: BaseException) -> bool:
    """Return whether the error means that no space is left."""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in _FULL)
