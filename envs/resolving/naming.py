"""Finds the name of a repository, an archive or a directory that is given without one.

    git+https://host/x.git@main  --uv pip compile --no-deps-->  name @ git+https://...@<commit>

Names are found before anything is planned: they decide which packages of the base are replaced,
what is checked after the build, and which content belongs to which line. The commit that uv chose
stays in the line: if the branch moves meanwhile, the environment is still the same, and the digest
describes what is installed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from flashpool.envs.concurrency.cancellation import run_in_thread_shielded
from flashpool.envs.errors import EnvironmentFailure, SpecRefused
from flashpool.envs.uv_cli import Progress, Uv
from flashpool.envs.uv_words import scrubbed

from .base_interpreter import BaseFacts
from .references import NormalRequirement, Reference
from .spec import NormalSpec

__all__ = ["Naming"]


class Naming:
    """Asks uv for names; `folder` is a scratch directory that the caller owns."""

    def __init__(
        self,
        uv: Uv,
        base: BaseFacts,
        folder: Path,
        *,
        refresh: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._uv = uv
        self._base = base
        self._folder = folder
        self._refresh = refresh
        self._progress = progress

    async def complete(self, spec: NormalSpec) -> NormalSpec:
        """Return the requirements with a name on every line.

        Lines whose marker does not apply here are left out.
        """
        if not spec.nameless:
            return spec
        found = [item for item in spec.requirements if item.nameless is None]
        for number, item in enumerate(spec.nameless):
            assert item.nameless is not None
            if self._applies(item.nameless):
                found.append(await self._named(item.nameless, number))
        ordered = sorted(dict.fromkeys(found), key=lambda item: (item.name, item.identity))
        return replace(spec, requirements=tuple(ordered))

    def _applies(self, reference: Reference) -> bool:
        return not reference.marker or self._base.applies(Requirement(f"x ; {reference.marker}"))

    async def _named(self, reference: Reference, number: int) -> NormalRequirement:
        asked = self._folder / f"nameless-{number}.in"
        await run_in_thread_shielded(asked.write_text, f"{reference.where}\n")
        try:
            text = await self._uv.resolve(
                asked,
                self._base.python,
                dependencies=False,
                refresh=self._refresh,
                progress=self._progress,
            )
        except EnvironmentFailure as failure:
            raise failure.but(
                requirement=failure.requirement or scrubbed(reference.where)
            ) from None
        told = _read(text, reference.where)
        # Files on this machine are identified by their content; a repository by the commit that uv
        # chose.
        where = reference.where if reference.content else told.url or reference.where
        return replace(
            reference, name=canonicalize_name(told.name), where=where, marker=""
        ).normal()


def _read(text: str, where: str) -> Requirement:
    rows = [row.partition("  #")[0].strip() for row in text.splitlines()]
    rows = [row for row in rows if row and not row.startswith("#")]
    try:
        (row,) = rows
        return Requirement(row)
    except (ValueError, InvalidRequirement):
        raise SpecRefused(
            f"uv cannot determine which package {where} is",
            requirement=where,
            words="\n".join(rows),
            advice=f"write it as `name @ {where}`",
        ) from None
