"""Objects that exist only while a program runs, and how a reader recreates them: see `pickler`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Reduced = Any


def make_local(local: Any) -> Reduced:
    """Create a `threading.local` with this thread's values."""
    return type(local), (), dict(local.__dict__) or None


def make_threads(threads: Any) -> Reduced:
    """A thread pool of the same size, whose threads begin with its first task."""
    names = ("_max_workers", "_thread_name_prefix", "_initializer", "_initargs")
    return type(threads), tuple(getattr(threads, name) for name in names)


def reduce_weak(_pickler: object, reference: Any) -> Reduced:
    """Reduce a weak reference: it lives as long as another sent object refers to its target."""
    target = reference()
    # Nothing else refers to this set.
    return type(reference), (set() if target is None else target,)


def reduce_weak_method(_pickler: object, reference: Any) -> Reduced:
    """Reduce a weak bound method; one whose object is gone cannot be recreated."""
    method = reference()
    return NotImplemented if method is None else (type(reference), (method,))


def reduce_weak_items(_pickler: object, items: Any) -> Reduced:
    """A weak dictionary: what it has now."""
    return type(items), (), None, None, iter(list(items.items()))
