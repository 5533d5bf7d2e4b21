"""`Pool.instance`: an object that lives in a worker of its own, called through futures.

    counter = pool.instance(Counter, 10)
    counter.inc(5)  ->  CallFuture     the first call creates it in a worker, which stays
    counter.close()                    the object's close() runs there, and the worker exits

The object is never in this process: a `RemoteInstance` has its class, the constructor's arguments
and a name. When the `RemoteInstance` is no longer referenced, or its ``with`` block ends, the
object is closed once the calls already made have ended.
"""

from __future__ import annotations

import inspect
import secrets
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

from flashpool.pool import pickling
from flashpool.pool._child.serialization import payload
from flashpool.pool.calls import InstanceRequest
from flashpool.pool.errors import InstanceLost

from .functions import touches_of
from .futures import CallFuture

if TYPE_CHECKING:
    from typing_extensions import Self


class InstancePool(Protocol):
    """The pool in which an instance lives."""

    def _release(self, instance: str) -> None: ...


class InstanceSubmitter(Protocol):
    """Submits the calls of an instance: a pool, or a view of one."""

    def _pool(self) -> InstancePool: ...

    def _dumps(self) -> pickling.Dumps: ...

    def _submit_method(
        self, method: InstanceMethod, arguments: Any, want: InstanceRequest, *, stream: bool
    ) -> CallFuture[Any]: ...


class RemoteInstance:
    """A handle on an object in a worker; its methods return futures.

    Plain methods run one at a time, in the order of the calls; ``async def`` methods run at once,
    up to ``max_concurrency``. The result of a generator method is a `RemoteIterator`.

    If the worker died, or was closed to make room, calls raise `InstanceLost` with the reason: the
    state is lost. With ``rebuild`` the next call creates the object again.
    """

    def __init__(
        self,
        submitter: InstanceSubmitter,
        cls: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        max_concurrency: int,
        rebuild: bool,
    ) -> None:
        self._submitter = submitter
        self._class = cls
        self._class_name = str(getattr(cls, "__qualname__", None) or type(cls).__qualname__)
        self._name = f"{self._class_name}_{secrets.token_hex(8)}"
        self._dumps = submitter._dumps()
        self._concurrency = max_concurrency
        self._rebuild = rebuild
        self._load = self._packed(args)
        pool = submitter._pool()
        self._let_go = weakref.finalize(self, _release, weakref.ref(pool), self._name)
        # The pool itself stops its instances when the interpreter exits.
        self._let_go.atexit = False

    def _packed(self, args: tuple[Any, ...]) -> bytes:
        """Return the bytes from which a worker creates the object.

        They are one piece, because a worker may have to create it more than once.
        """
        cls = payload.pack(self._class, self._dumps, out_of_band=False)
        arguments = payload.pack((args, {}), self._dumps, out_of_band=False)
        return payload.pack_call(cls, arguments)[0]

    def __getattr__(self, name: str) -> RemoteMethod:
        if name.startswith("_"):
            raise AttributeError(
                f"{name!r}: methods that begin with _ cannot be called on an instance"
            )
        return RemoteMethod(self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> CallFuture[Any]:
        """Call the object itself."""
        return self._call("__call__", args, kwargs)

    def close(self) -> None:
        """Close the object when the calls made so far have ended. Does not wait."""
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._let_go.alive else " (closed)"
        return f"<{self._name} in {self._submitter!r}{state}>"

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallFuture[Any]:
        if not self._let_go.alive:
            raise InstanceLost(f"{self._name} was closed", instance=self._name)
        function = InstanceMethod(self, method)
        want = InstanceRequest(
            instance=self._name,
            class_name=self._class_name,
            # No other code knows this name.
            code=None,
            method=method,
            concurrency=self._concurrency,
            load=self._load,
            must_exist=not self._rebuild,
            generation=0 if self._rebuild else 1,
        )
        definition = getattr(self._class, method, None)
        stream = inspect.isgeneratorfunction(definition) or inspect.isasyncgenfunction(definition)
        return self._submitter._submit_method(function, (args, kwargs), want, stream=stream)


class RemoteMethod:
    """A method of a `RemoteInstance`: calling it returns a future."""

    __slots__ = ("_instance", "_name")

    def __init__(self, instance: RemoteInstance, name: str) -> None:
        self._instance = instance
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> CallFuture[Any]:
        """Call the method in the worker."""
        return self._instance._call(self._name, args, kwargs)

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._instance!r}>"


class InstanceMethod:
    """The name of a method; takes the place of a function in a call."""

    def __init__(self, instance: RemoteInstance, name: str) -> None:
        self.label = f"{instance._class_name}.{name}"
        self.key: Hashable = (getattr(instance._class, "__module__", None), instance._class_name)
        self.touches = touches_of(instance._class)
        self.dumps: pickling.Dumps = instance._dumps
        self._parcel = payload.pack(name, self.dumps)

    def take(self) -> tuple[bytes, list[int]]:
        """Return the parcel."""
        return self._parcel


def _release(pool: weakref.ref[InstancePool], name: str) -> None:
    alive = pool()
    if alive is not None:
        alive._release(name)
