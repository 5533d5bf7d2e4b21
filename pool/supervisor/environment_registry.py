"""The environments that calls may use: a name and an interpreter each, nothing more.

    add --> calls, processes --> none of either is left --> on_unused: forgotten
             |
             '-- a zygote preloads what its calls import --> on_learned

The code that adds an environment keeps its files until `on_unused` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flashpool.pool.apps import App
from flashpool.pool.calls import BASE_ENVIRONMENT
from flashpool.pool.scheduling.commands import ZygoteKey

from .command_runner import CommandRunner
from .components import Components


class EnvironmentRegistry:
    """The base, and the environments that were added."""

    def __init__(self, components: Components, actions: CommandRunner) -> None:
        self._components = components
        self._actions = actions
        #: Called when an added environment has no process and no call left.
        self.on_unused: Callable[[str], None] = _nobody
        #: Called when a zygote has preloaded modules that an environment's calls import: with these
        #: modules, and the packages that the sources of those calls name.
        self.on_learned: Callable[[str, tuple[str, ...], tuple[str, ...]], None] = _nobody
        #: Environments to stop when nothing keeps them running any more.
        self.unwanted: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._components.zygote_set.pythons

    def add(
        self, name: str, python: str, preload: Iterable[str] = (), entries: Iterable[str] = ()
    ) -> None:
        """Add an environment that calls may use; a known one may have moved.

        A call must be submitted in the same turn of the loop, or the environment may count as
        unused before it is used. ``preload``: what the environment's calls imported earlier;
        ``entries``: the packages that their sources named.
        """
        pythons = self._components.zygote_set.pythons
        if name not in self:
            self._components.learner.seed(name, preload, entries)
        elif pythons[name] != python and not self.retire_idle(name):
            # Running calls continue; the processes exit when none is left.
            self.unwanted.add(name)
        pythons[name] = python

    def add_app(self, name: str, python: str, app: App) -> None:
        """Add an environment for this app's workers only: their zygote has its directory."""
        self._components.zygote_set.apps[name] = app
        self._components.zygote_set.pythons[name] = python

    def learned(self, key: ZygoteKey, modules: tuple[str, ...]) -> None:
        """Report the modules that a zygote of this environment has preloaded.

        An empty tuple means that preloading was given up.
        """
        # Imports of an app say nothing about the environment that it shares with others.
        if key.environment not in (BASE_ENVIRONMENT, *self._components.zygote_set.apps):
            entries = self._components.learner.entries(key) if modules else ()
            self.on_learned(key.environment, modules, entries)

    def short(self, who: str, what: str) -> None:
        """Report the resource that an environment lacks; empty when the shortage is over."""
        shortages = self._components.shortages
        if what:
            shortages.met(who, what)
        else:
            shortages.over(who)

    # Stopping.

    def retire_idle(self, name: str) -> bool:
        """Stop an environment's processes; return False if a call uses the environment."""
        scheduler = self._components.scheduler
        if scheduler.is_idle(name):
            self._actions.do(scheduler.retire_idle(name, self._components.now()))
            return True
        if not scheduler.is_kept_by_residents(name):
            return False
        reason = "its environment is to be deleted, to make room on the disk"
        if not self._components.residents.pressure.close_in_environment(name, reason):
            return False
        # The environment is stopped when these instances have closed.
        self.unwanted.add(name)
        return True

    def supersede(self, name: str) -> None:
        """Make calls use another copy from now on.

        Processes of the old copy exit when no call is left.
        """
        scheduler = self._components.scheduler
        if scheduler.is_idle(name):
            self._actions.do(scheduler.retire_idle(name, self._components.now()))
        else:
            self.unwanted.add(name)

    def settle(self, name: str) -> None:
        """Stop an environment that has become idle, if it is unwanted."""
        scheduler = self._components.scheduler
        if name in self.unwanted and scheduler.is_idle(name):
            self.unwanted.remove(name)
            self._actions.do(scheduler.retire_idle(name, self._components.now()))

    def forget_unused(self, *names: str) -> None:
        """Forget these environments, or all, if they have neither a process nor a call."""
        components = self._components
        if components.closed:
            return
        for name in names or list(components.zygote_set.pythons):
            if name in self and name != BASE_ENVIRONMENT and not components.scheduler.uses(name):
                components.zygote_set.forget(name)
                components.learner.forget(name)
                self.unwanted.discard(name)
                self.on_unused(name)


def _nobody(*_told: object) -> None:
    """Do nothing: no listener is set."""
