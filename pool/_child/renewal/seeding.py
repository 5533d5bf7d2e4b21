"""Random numbers that follow from a call's ``seed``.

Generators that would be seeded from the system's entropy get numbers that follow from the seed,
from the module whose import creates the generator (or the call itself), and from the number of
generators that the module created before. So a module's generators are the same whether the module
was preloaded (`randomness`) or is imported by the call, in any order.
"""

from __future__ import annotations

import sys

from .importers import importing_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

#: Bits of a seed for a generator of `random`.
_BITS = 256


class _Numbers:
    """Numbers that replace entropy."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._made: dict[str, int] = {}
        self._next: tuple[str, int] | None = None

    def resume(self, maker: str, number: int) -> None:
        """Make the next draw for a generator that this module created when it was imported."""
        self._next = maker, number
        self._made[maker] = max(self._made.get(maker, 0), number + 1)

    def draw(self, bits: int) -> int:
        """Return ``bits`` bits."""
        if self._next is not None:
            (maker, number), self._next = self._next, None
        else:
            maker = importing_module()
            number = self._made.get(maker, 0)
            self._made[maker] = number + 1
        from hashlib import shake_128

        text = f"{self.seed}:{maker}:{number}".encode("utf-8", "backslashreplace")
        return int.from_bytes(shake_128(text).digest((bits + 7) // 8), "big") >> -bits % 8


_numbers: _Numbers | None = None


def resume(maker: str, number: int) -> None:
    """Name the generator that is renewed next; without a seed, do nothing."""
    if _numbers is not None:
        _numbers.resume(maker, number)


def begin(seed: int) -> None:
    """Seed the global generators, also those of modules that are imported later."""
    global _numbers
    _numbers = numbers = _Numbers(seed)
    import random

    original = random.Random.seed

    def seeded(generator: Any, a: Any = None, *args: Any, **kwargs: Any) -> None:
        original(generator, numbers.draw(_BITS) if a is None else a, *args, **kwargs)

    random.Random.seed = seeded  # type: ignore[assignment]
    random.seed(seed)
    for name, apply in _ON_IMPORT.items():
        if name in sys.modules:
            apply(sys.modules[name], seed)
    sys.meta_path.insert(0, _Finder(seed))


def _seed_numpy_bits(module: Any, _seed: int) -> None:
    numbers = _numbers
    assert numbers is not None
    module.randbits = numbers.draw


def _seed_numpy(module: Any, seed: int) -> None:
    module.seed(seed & 0xFFFFFFFF)


def _seed_torch(module: Any, seed: int) -> None:
    module.manual_seed(seed)


#: Modules whose generators are seeded as soon as they are imported.
_ON_IMPORT: dict[str, Callable[[Any, int], None]] = {
    "numpy.random.bit_generator": _seed_numpy_bits,
    "numpy.random.mtrand": _seed_numpy,
    "torch": _seed_torch,
}


class _Finder:
    """Seeds the generators of a library when its import ends (``sys.meta_path``)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Return the spec of the other finders, with a loader that seeds the module."""
        if name not in _ON_IMPORT:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)  # type: ignore[arg-type]
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _SeedingLoader(spec.loader, self.seed)  # type: ignore[assignment]
                    return spec
        return None


class _SeedingLoader:
    """Loads a module with the original loader, then seeds the module's generators."""

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader = loader
        self.seed = seed

    def create_module(self, spec: ModuleSpec) -> Any:
        """Delegate to the original loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Delegate to the original loader, then seed the module."""
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _ON_IMPORT[module.__name__](module, self.seed)
