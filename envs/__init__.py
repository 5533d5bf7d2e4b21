"""Environments: a spec of packages in, a lease on a ready interpreter out.

    spec.normalise -> digest.request_key -> memo | resolver (and a speculative build beside it)
      -> digest.digest_of -> lookup (disk, archive) | builder -> store.publish -> leases -> eviction

The facade is `Environments`; the environment of a lease says which Python to exec. Environments are
content-addressed and shared between processes and pods through a volume. Scratch directories and
renames keep the store correct on volumes whose file locks do not work.

Names are imported when they are first used (`lazy_names`): a process that reads files for another
process (`store/apart.py`) starts in a third of the time without the modules that build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_names import lazy_names

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

#: The modules that define the names that are not in `errors`.
_HOMES = {
    "Decision": "lease",
    "EnvSettings": "settings",
    "Environment": "lease",
    "Environments": "environments",
    "Explanation": "lease",
    "Lease": "lease",
    "Spec": "resolving.spec",
}

__getattr__, __dir__ = lazy_names(globals(), __all__, _HOMES)
