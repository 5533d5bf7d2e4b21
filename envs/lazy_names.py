"""Names of a package that are imported when they are first used.

`flashpool.envs` and `flashpool.pool` offer many names whose modules take long to import. A process
that uses only one module below them does not pay for the others, and imports form no cycle.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence


def lazy_names(
    namespace: dict[str, object], public: Sequence[str], homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and the ``__dir__`` of a package.

    ``namespace`` is ``globals()`` of the package, ``public`` its ``__all__``. ``homes`` maps a name
    to the module that defines it, relative to the package; other names come from ``errors``.
    """
    package = namespace["__name__"]
    assert isinstance(package, str)

    def get(name: str) -> object:
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = importlib.import_module(f".{homes.get(name, 'errors')}", package)
        value = namespace[name] = getattr(home, name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *public})

    return get, names
