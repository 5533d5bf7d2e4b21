"""Environments: a spec of packages in, a lease on a ready interpreter out.

    spec.normalise -> digest.request_key -> memo | resolver (beside it a speculative build)
      -> digest.digest_of -> lookup (disk, archive) | builder -> store.publish -> leases -> eviction

The facade is `Environments`; a lease's environment tells which Python to exec.
Content-addressed, shared between processes and pods through a volume, and
correct where file locks are not: scratch directories and renames do the work.

Names are imported when they are first used: a process that looks at files for another one
(`store/apart.py`) starts in a third of the time without what builds environments.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .environments import Environments
    from .errors import (
        BuildAbandoned,
        BuildFailed,
        BuildTimeout,
        CertificateRefused,
        CompilerMissing,
        DiskFull,
        EnvironmentFailure,
        InterpreterMissing,
        QuotaReached,
        RegistryUnreachable,
        ResolutionFailed,
        SourceRefused,
        SpecRefused,
        StoreUnavailable,
        SystemPackagesFailed,
        Tampered,
        UvKilled,
        VerificationFailed,
    )
    from .lease import Decision, Environment, Explanation, Lease
    from .resolving.spec import Spec
    from .settings import EnvSettings

__all__ = [
    "BuildAbandoned",
    "BuildFailed",
    "BuildTimeout",
    "CertificateRefused",
    "CompilerMissing",
    "Decision",
    "DiskFull",
    "EnvSettings",
    "Environment",
    "EnvironmentFailure",
    "Environments",
    "Explanation",
    "InterpreterMissing",
    "Lease",
    "QuotaReached",
    "RegistryUnreachable",
    "ResolutionFailed",
    "SourceRefused",
    "Spec",
    "SpecRefused",
    "StoreUnavailable",
    "SystemPackagesFailed",
    "Tampered",
    "UvKilled",
    "VerificationFailed",
]

#: Where the names are that are not in `errors`.
_HOMES = {
    "Decision": "lease",
    "EnvSettings": "settings",
    "Environment": "lease",
    "Environments": "environments",
    "Explanation": "lease",
    "Lease": "lease",
    "Spec": "resolving.spec",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
