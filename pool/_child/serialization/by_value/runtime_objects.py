"""Objects that exist only while a program runs, and how a reader recreates them: see `pickler`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Reduced = Any


def make_local(local: Any) -> Reduced:
    """Reduce a `threading.local` to a new one with this thread's values."""
    return type(local), (), dict(local.__dict__) or None


def make_threads(threads: Any) -> Reduced:
    """Reduce a thread pool to a new one of the same size, which has no threads yet."""
    names = ("_max_workers", "_thread_name_prefix", "_initializer", "_initargs")
    return type(threads), tuple(getattr(threads, name) for name in names)


def reduce_weak(_pickler: object, reference: Any) -> Reduced:
    """Reduce a weak reference: at the reader, another pickled object must keep its target alive."""
    target = reference()
    # A dead reference becomes one to a set that nothing else refers to.
    return type(reference), (set() if target is None else target,)


def reduce_weak_method(_pickler: object, reference: Any) -> Reduced:
    """Reduce a weak bound method; if its object is gone, it cannot be recreated."""
    method = reference()
    return NotImplemented if method is None else (type(reference), (method,))


def reduce_weak_items(_pickler: object, items: Any) -> Reduced:
    """Reduce a weak dictionary to its current items."""
    return type(items), (), None, None, iter(list(items.items()))
