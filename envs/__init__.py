"""Environments: a spec of packages in, a lease on a ready interpreter out.

    spec.normalise -> digest.request_key -> memo | resolver (beside it a speculative build)
      -> digest.digest_of -> lookup (disk, archive) | builder -> store.publish -> leases -> eviction

The facade is `Environments`; a lease's environment tells which Python to exec.
Content-addressed, shared between processes and pods through a volume, and
correct where file locks are not: scratch directories and renames do the work.
"""

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
