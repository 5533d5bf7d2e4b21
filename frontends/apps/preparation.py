"""Prepares, from settings and variables, an app that can be loaded; does not load the app.

    artifact --obtain--> folder --contract--> DeployedApp --+--> PreparedApp --to_app--> Backend
    endpoint's variables ----------------------------------'     (its environment is built there)

Each preparation reads the artifact again: to serve a newer artifact, prepare again, and release the
old app when none of its workers is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flashpool.envs import Spec
from flashpool.pool.apps import App

from .artifacts.artifact import AppFolder, ArtifactSource, mark_of, obtain, store_of
from .artifacts.stray_dotenv import stray_dotenv
from .by_hand import chosen_resource, contract_by_hand
from .compiled_modules import explain_foreign, find_foreign
from .contract import AppEnvironment, Contract, DeployedApp, EntryKind
from .errors import AppError
from .generations import contract_of
from .neighbours import Neighbours, neighbours_of
from .serving.policies import isolates, policies_of
from .variables import app_variables

if TYPE_CHECKING:
    from flashpool.frontends.settings.table import Settings

__all__ = ["AppSource", "PreparedApp"]

_log = logging.getLogger(__name__)

#: Modules of the client, not the user: every app of the client or its generated handler imports
#: them.
_CLIENT: Final = (
    *("runpod_flash", "pydantic", "runpod_flash.client", "runpod_flash.core.resources"),
    "runpod_flash.endpoint",
)
_PRELOADED: Final = {
    EntryKind.ASGI: (*_CLIENT, "fastapi", "runpod_flash.runtime.lb_handler"),
    EntryKind.HANDLER: _CLIENT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedApp:
    """An app that can be loaded: its folder, entry and environment."""

    folder: AppFolder
    deployed: DeployedApp
    #: Packages to install beside those of the artifact, or None.
    spec: Spec | None
    #: All variables, apart from those that differ between workers, such as their GPUs.
    variables: Mapping[str, str]
    #: Printed first if the app cannot be loaded.
    hint: str
    #: Refreshes the addresses of other resources; None: the platform is not asked.
    neighbours: Neighbours | None

    def to_app(self, settings: Settings, workers: int) -> App:
        """Return the app in the form that the pool serves."""
        entry, config = self.deployed.entry, settings.to_pool_config()
        return App(
            name=self.deployed.resource,
            directory=str(self.folder.path),
            file="" if entry.module else str(entry.file.relative_to(self.folder.path)),
            module=entry.module,
            attribute=entry.attribute,
            generated=entry.has_execute,
            spec=self.spec,
            env={**self.variables, **entry.variables},
            preload=() if entry.module else _PRELOADED[entry.kind],
            hint=self.hint,
            memory_mb=config.memory_mb,
            workers=workers,
            concurrency=settings.app_concurrency,
            websockets=settings.app_websockets,
            threads=settings.app_threads,
            queue_limit=settings.queue_limit,
            queue_timeout_s=settings.queue_timeout_s,
            start_timeout_s=settings.app_start_timeout_s,
            policies=policies_of(
                settings,
                self.deployed.resource,
                self.deployed.routes if entry.has_execute else (),
            ),
            neighbours=None if self.neighbours is None else self.neighbours.stats,
            isolates=isolates(settings),
        )

    def release(self) -> None:
        """Release the app's folder: no worker uses it any longer."""
        self.folder.release()


class AppSource:
    """The source of an app, which can be prepared from it again at any time."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        resource: str,
        *,
        by_hand: Path | None = None,
    ) -> None:
        """``by_hand``: a folder or an archive that a user serves, independent of any endpoint.

        Without ``resource``, the only load-balanced resource is served.
        """
        self.resource = resource
        self._settings = settings
        self._environ = environ
        self._by_hand = by_hand
        #: The mark of the artifact when it was last read; None if reading it again may succeed.
        self._seen: object = None

    def __repr__(self) -> str:
        return f"<AppSource of {self.resource!r}>"

    async def prepare(self, *, wait: bool = True) -> PreparedApp:
        """Read the artifact, and unpack it if it is new; ``wait``: for a missing archive.

        Raises:
            AppError: the app cannot be served; `AppError.passes` says whether that may change.
        """
        seen = (await self._mark(),)
        try:
            prepared = await self._prepare(wait)
        except AppError as error:
            self._seen = None if error.passes else seen
            raise
        self._seen = seen
        for sentence in prepared.deployed.oddities:
            _log.warning("%s: %s", self.resource, sentence)
        return prepared

    async def may_differ(self) -> bool:
        """Return False if the artifact is unchanged, so that `prepare` would do the same again."""
        return self._seen != (await self._mark(),)

    async def _prepare(self, wait: bool) -> PreparedApp:
        folder = await self._obtain(wait)
        try:
            return await asyncio.to_thread(self._read, folder)
        except BaseException:
            folder.release()
            raise

    async def _mark(self) -> object:
        source = ArtifactSource.of(self._settings)
        place = source.archive
        if self._by_hand is not None:
            place = self._by_hand
        elif source.is_unpacked and source.link is not None:
            place = source.link
        return await asyncio.to_thread(mark_of, place)

    async def _obtain(self, wait: bool) -> AppFolder:
        settings, target = self._settings, self._by_hand
        source = ArtifactSource.of(settings)
        if target is not None:
            if target.is_dir():
                return AppFolder(path=target.resolve())
            source = replace(source, archive=target, wait_s=0.0, link=None, is_unpacked=False)
        return await obtain(source, partial(store_of, settings), wait=wait)

    def _read(self, folder: AppFolder) -> PreparedApp:
        settings, path = self._settings, folder.path
        contract = self._contract(path)
        if self._by_hand is not None:
            self.resource = chosen_resource(contract, path, self.resource)
        deployed = contract.deployed_app(path, self.resource, settings.app_dependencies)
        neighbours = neighbours_of(path, self._environ)
        if neighbours is not None:
            neighbours.begin()
        variables = app_variables(
            self._environ,
            settings,
            deployed.resource,
            deployed=self._by_hand is None,
            manifest=None if neighbours is None else neighbours.target,
        )
        if stray := stray_dotenv(path):
            _log.warning("%s: %s", deployed.resource, stray)
        return PreparedApp(
            folder=folder,
            deployed=deployed,
            spec=_spec(deployed.environment),
            variables=variables,
            hint=_hint(path, deployed.environment.python),
            neighbours=neighbours,
        )

    def _contract(self, folder: Path) -> Contract:
        choose = contract_of if self._by_hand is None else contract_by_hand
        return choose(folder, self._environ)


def _spec(environment: AppEnvironment) -> Spec | None:
    if not (environment.requirements or environment.python or environment.system_packages):
        return None
    return Spec(
        requirements=environment.requirements,
        python_version=environment.python or None,
        brought=environment.constraints,
        system_packages=environment.system_packages,
    )


def _hint(folder: Path, python: str) -> str:
    return explain_foreign(find_foreign(folder, python), python) if python else ""
