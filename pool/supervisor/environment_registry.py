"""The environments that calls may name: a name, an interpreter, and nothing more.

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
        #: Called with modules that an environment's calls import, when a zygote preloads them, and
        #: packages that the sources of those calls name.
        self.on_learned: Callable[[str, tuple[str, ...], tuple[str, ...]], None] = _nobody
        #: Environments to stop when nothing keeps them running any more.
        self.unwanted: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._components.zygote_set.pythons

    def add(
        self, name: str, python: str, preload: Iterable[str] = (), entries: Iterable[str] = ()
    ) -> None:
        """Add an environment that calls may name; a known one may have moved.

        A call must be submitted in the same turn of the loop, or the environment may be unused
        before it is used. ``preload``: what its calls imported at another time; ``entries``: the
        packages that their sources named.
        """
        pythons = self._components.zygote_set.pythons
        if name not in self:
            self._components.learner.seed(name, preload, entries)
        elif pythons[name] != python and not self.retire_idle(name):
            # Running calls continue; its processes exit when none is left.
            self.unwanted.add(name)
        pythons[name] = python

    def add_app(self, name: str, python: str, app: App) -> None:
        """An environment for the workers of this app only: their zygote has its directory."""
        self._components.zygote_set.apps[name] = app
        self._components.zygote_set.pythons[name] = python

    def learned(self, key: ZygoteKey, modules: tuple[str, ...]) -> None:
        """Report the modules that a zygote of this environment has preloaded; an empty tuple if
        preloading was given up.
        """
        # Imports of an app say nothing about the environment that it shares with others.
        if key.environment not in (BASE_ENVIRONMENT, *self._components.zygote_set.apps):
            entries = self._components.learner.entries(key) if modules else ()
            self.on_learned(key.environment, modules, entries)

    def short(self, who: str, what: str) -> None:
        """Report the resource that is missing for an environment; empty when the
        shortage is over.
        """
        shortages = self._components.shortages
        if what:
            shortages.met(who, what)
        else:
            shortages.over(who)

    # Letting go.

    def retire_idle(self, name: str) -> bool:
        """Let an environment's processes go, unless a call uses it: then False."""
        scheduler = self._components.scheduler
        if scheduler.is_idle(name):
            self._actions.do(scheduler.retire_idle(name, self._components.now()))
            return True
        if not scheduler.is_kept_by_residents(name):
            return False
        reason = "its environment is to be deleted, to make room on the disk"
        if not self._components.residents.pressure.close_in_environment(name, reason):
            return False
        # It is stopped when they have closed.
        self.unwanted.add(name)
        return True

    def supersede(self, name: str) -> None:
        """From now on calls use another copy: processes of the old one exit when no
        call is left.
        """
        scheduler = self._components.scheduler
        if scheduler.is_idle(name):
            self._actions.do(scheduler.retire_idle(name, self._components.now()))
        else:
            self.unwanted.add(name)

    def settle(self, name: str) -> None:
        """Check whether an environment that came to rest is unused, so that it can be stopped."""
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
