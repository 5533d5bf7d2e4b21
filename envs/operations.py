"""The operations of `flashpool envs ...`; the front-end formats their results.

    listing  build  show  explain  warm  gc  verify  remove

Each operation takes an open `Environments` and returns dataclasses. Nothing prints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from .acquiring.provider import Provider
from .building import bytecode
from .concurrency.disk_threads import run_in_thread
from .concurrency.single_flight import Report
from .environments import Environments
from .errors import EnvironmentFailure, SpecRefused, Tampered
from .lease import Environment, Explanation
from .resolving.spec import Spec
from .store.eviction import Evicted, evict_archives
from .store.layout import remove_tree
from .store.manifest import Facts, check_seal, check_sizes, check_wheels, read_facts, sealed
from .store.preloads import read_preloads

__all__ = [
    "Built",
    "Checked",
    "Listed",
    "Listing",
    "Shown",
    "build",
    "explain",
    "gc",
    "listing",
    "read_requirements",
    "remove",
    "show",
    "verify",
    "warm",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An environment in a listing."""

    digest: str
    mode: str
    packages: int
    #: The packages' names, in order.
    names: tuple[str, ...]
    bytes: int
    created: float
    last_used: float
    users: int
    archived: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The store and its environments."""

    root: Path
    store_mode: str
    note: str
    quota: int
    #: Bytes of everything in the store, including uv's cache.
    total_bytes: int
    environments: tuple[Listed, ...]
    archived_only: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All facts about one environment."""

    facts: Facts
    path: Path
    last_used: float
    users: tuple[str, ...]
    sealed: bool
    archived: bool
    preloads: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The outcome for one set of requirements."""

    requirements: tuple[str, ...]
    environment: Environment | None
    failure: EnvironmentFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result of verifying one environment: the problem is empty if there is none."""

    digest: str
    problem: str
    sealed: bool


async def listing(environments: Environments) -> Listing:
    """Return everything in the store, least recently used first."""
    provider = await environments.open()
    return await run_in_thread(_listing, provider)


def _listing(provider: Provider) -> Listing:
    open_store = provider.open_store
    rows = [_listed(provider, item.digest) for item in open_store.evictor.stored()]
    here = {row.digest for row in rows if row is not None}
    archived = open_store.shared.archived() if open_store.archives else []
    return Listing(
        root=open_store.store.root,
        store_mode=open_store.places.mode,
        note=open_store.places.note,
        quota=open_store.evictor.limits.quota,
        total_bytes=open_store.evictor.measure().total,
        environments=tuple(row for row in rows if row is not None),
        archived_only=tuple(digest for digest in archived if digest not in here),
    )


def _listed(provider: Provider, digest: str) -> Listed | None:
    open_store = provider.open_store
    facts = read_facts(open_store.store.environment(digest))
    if facts is None:
        return None
    return Listed(
        digest=digest,
        mode=facts.mode,
        packages=len(facts.decisions),
        names=tuple(sorted(one.name for one in facts.decisions)),
        bytes=facts.bytes,
        created=facts.created,
        last_used=open_store.marks.last_used(digest),
        users=len(open_store.marks.users(digest)),
        archived=provider.lookup.archived(digest),
    )


async def build(
    environments: Environments,
    requirements: Iterable[str],
    *,
    python: str | None = None,
    progress: Report | None = None,
) -> Built:
    """Build or find one set of requirements, and finish it: bytecode, seal, archive."""
    spec = Spec(requirements=tuple(requirements), python_version=python)
    (built,) = await _finished(environments, [spec], progress)
    return built


async def _finished(
    environments: Environments, specs: Iterable[Spec], progress: Report | None
) -> tuple[Built, ...]:
    """Build sets one after the other, then finish all; build again those that were withdrawn."""
    asked = [(spec, await _built(environments, spec, progress)) for spec in specs]
    provider = await environments.open()
    await provider.settled()
    done = [
        await _built(environments, spec, progress)
        if await run_in_thread(_withdrawn, built)
        else built
        for spec, built in asked
    ]
    await provider.settled()
    return tuple(done)


def _withdrawn(built: Built) -> bool:
    """Return whether the environment was withdrawn because its files differ from its wheels."""
    found = built.environment
    if found is None or found.root is None or found.origin != "built":
        return False
    return read_facts(found.root) is None


async def _built(environments: Environments, spec: Spec, progress: Report | None) -> Built:
    try:
        lease = await environments.acquire(spec, progress=progress)
    except EnvironmentFailure as failure:
        return Built(requirements=spec.requirements, environment=None, failure=failure)
    lease.release()
    return Built(requirements=spec.requirements, environment=lease.environment)


async def explain(
    environments: Environments, requirements: Iterable[str], *, python: str | None = None
) -> Explanation:
    """Return where each package would come from."""
    spec = Spec(requirements=tuple(requirements), python_version=python)
    return await environments.explain(spec)


async def warm(
    environments: Environments, path: Path, *, progress: Report | None = None
) -> tuple[Built, ...]:
    """Build every set of a file, one after the other; continue after a failure."""
    sets = await run_in_thread(read_requirements, path)
    specs = [Spec(requirements=requirements) for requirements in sets]
    return await _finished(environments, specs, progress)


def read_requirements(path: Path) -> list[tuple[str, ...]]:
    """Return the sets of requirements in a file.

    One requirement a line, an empty line between sets, `#` for comments.
    """
    sets: list[tuple[str, ...]] = []
    current: list[str] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        text = line.partition(" #")[0].strip()
        if text.startswith("#"):
            continue
        if text:
            current.append(text)
        elif current:
            sets.append(tuple(current))
            current = []
    return sets


async def show(environments: Environments, digest: str) -> Shown:
    """Return one environment; a unique beginning of its digest is enough."""
    provider = await environments.open()
    return await run_in_thread(_show, provider, digest)


def _show(provider: Provider, beginning: str) -> Shown:
    open_store = provider.open_store
    digest = _find(provider, beginning)
    path = _unpacked(provider, digest)
    facts = read_facts(path)
    if facts is None:
        raise Tampered(
            f"environment {digest} has no facts",
            advice="remove it: the next call that needs it builds it again",
        )
    return Shown(
        facts=facts,
        path=path,
        last_used=open_store.marks.last_used(digest),
        users=tuple(open_store.marks.users(digest)),
        sealed=sealed(path),
        archived=provider.lookup.archived(digest),
        preloads=read_preloads(open_store.shared, digest).modules,
    )


def _find(provider: Provider, beginning: str) -> str:
    open_store = provider.open_store
    known: set[str] = {
        *open_store.store.digests(),
        *(open_store.shared.archived() if open_store.archives else ()),
    }
    found = [digest for digest in known if digest.startswith(beginning)]
    if len(found) != 1 or not beginning:
        what = "no environment begins" if not found else f"{len(found)} environments begin"
        raise SpecRefused(f"{what} with {beginning!r}", advice="`envs ls` lists them")
    return found[0]


def _unpacked(provider: Provider, digest: str) -> Path:
    path = provider.open_store.store.environment(digest)
    if not path.is_dir():
        raise SpecRefused(
            f"environment {digest} is here only as an archive",
            advice="it is unpacked and checked when a call asks for it, or `envs build` with its "
            "requirements",
        )
    return path


async def gc(environments: Environments, *, everything: bool = False) -> Evicted:
    """Clean up after dead processes, and evict what the limits ask for, or all that is unused."""
    provider = await environments.open()
    await run_in_thread(provider.open_store.sweep)
    if everything:
        return await provider.evict_unused()
    if provider.open_store.archives_writable:
        quota = provider.open_store.evictor.limits.quota
        await run_in_thread(evict_archives, provider.open_store.shared, quota)
    return await provider.make_room(reserve=False)


async def verify(environments: Environments, digests: Iterable[str] = ()) -> tuple[Checked, ...]:
    """Compare files with what was published and what their wheels hold; bytecode with its source.

    Files are compared by checksum if there is a seal, otherwise by size.
    """
    provider = await environments.open()
    named = [await run_in_thread(_find, provider, digest) for digest in digests]
    for digest in named:
        await run_in_thread(_unpacked, provider, digest)
    chosen = named or await run_in_thread(provider.open_store.store.digests)
    key = environments.settings.volume_key
    return tuple([await _verify(provider, digest, key) for digest in chosen])


async def _verify(provider: Provider, digest: str, key: bytes | None) -> Checked:
    path = provider.open_store.store.environment(digest)
    checked = await run_in_thread(_compare, path, key)
    if checked.problem:
        return checked
    # Last, because this runs the environment's own Python.
    found = await bytecode.problems(path)
    return replace(checked, problem=found[0] if found else "")


def _compare(path: Path, key: bytes | None) -> Checked:
    has_seal = sealed(path)
    try:
        check_sizes(path)
        if has_seal:
            check_seal(path, key)
        else:
            check_wheels(path)
    except (Tampered, OSError) as problem:
        return Checked(digest=path.name, problem=str(problem), sealed=has_seal)
    return Checked(digest=path.name, problem="", sealed=has_seal)


async def remove(environments: Environments, digest: str, *, archive: bool = True) -> bool:
    """Delete an environment and its archive; return False if the environment is in use."""
    provider = await environments.open()
    return await run_in_thread(_remove, provider, digest, archive)


def _remove(provider: Provider, beginning: str, archive: bool) -> bool:
    open_store = provider.open_store
    digest = _find(provider, beginning)
    if not open_store.evictor.evict(digest):
        return False
    if archive and open_store.archives_writable:
        remove_tree(open_store.shared.archive_manifest(digest))
        remove_tree(open_store.shared.archive(digest))
    return True
