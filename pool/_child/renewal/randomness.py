"""Random number generators, and other values of the zygote that each worker must renew.

    zygote:  with Makers(): import ... -> which generators were seeded from entropy
    scout:   values that imports drew --> `drawn_values`: the attributes that hold them
    zygote, before each fork:  renew_globals() -> new states of the global generators
    worker:  renew(seed) -> other generators and values, as a fresh process would have them

A fresh process seeds its generators from the system's entropy. A fork has the generators of its
zygote, so all forks would draw the same numbers. A generator with an explicit seed keeps it: in
fresh processes, too, it would draw the same numbers. ``seed`` is the call's (`seeding`).

The zygote itself renews the generators that nearly all preloads have: it writes to the same few
pages each time, whereas a worker would also have to read the code for this.
"""

from __future__ import annotations

import gc
import os
import sys
from collections import namedtuple

from .importers import importing_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from . import drawn_values

#: A Mersenne Twister's state: 624 numbers of 32 bits, and how many of them are used up
#: (numpy/random/src/mt19937/mt19937.h, Modules/_randommodule.c).
_NUMBERS, _WORD = 624, 4
#: How far a generator may have advanced since its creation: in keys of 624 numbers (`random`), or
#: in numbers (NumPy).
_ROUNDS, _STEPS = 16, 4096
#: Bytes of an object's header: reference count and type.
_HEAD = 16
#: Length of `multiprocessing`'s authentication key.
_AUTHKEY_BYTES = 32

# -- In the zygote: who created which generator -------------------------------------------


class Makers:
    """Records the generators that are created while modules are imported."""

    def __init__(self) -> None:
        #: Each generator (of NumPy: its seed); its module; its number in the module; its state.
        self.made: list[tuple[Any, str, int, Any]] = []
        self._numbers: dict[str, int] = {}
        self._randbits: Callable[[int], int] | None = None

    def __enter__(self) -> Makers:
        import random

        self._seed = seed = random.Random.seed
        made, given = self._made, self._given

        def recorded(generator: Any, a: Any = None, *args: Any, **kwargs: Any) -> None:
            seed(generator, a, *args, **kwargs)
            if a is None:
                made(generator)
            else:
                given(generator)

        random.Random.seed = recorded  # type: ignore[assignment]
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.modules["random"].Random.seed = self._seed
        if self._randbits is not None:
            sys.modules["numpy.random.bit_generator"].randbits = self._randbits  # type: ignore[attr-defined]
        sys.meta_path.remove(self)

    def find_spec(self, _name: str, _path: object = None, _target: object = None) -> None:
        """Wrap NumPy's function that returns seeds, as soon as NumPy is imported."""
        module: Any = sys.modules.get("numpy.random.bit_generator")
        randbits = getattr(module, "randbits", None)
        if randbits is None or self._randbits is not None:
            return
        self._randbits = randbits

        def recorded(bits: int) -> int:
            value = randbits(bits)
            self._made(value)
            return value  # type: ignore[no-any-return]

        module.randbits = recorded

    def _made(self, generator: Any) -> None:
        module = importing_module()
        number = self._numbers[module] = self._numbers.get(module, -1) + 1
        state = None if isinstance(generator, int) else _state(generator)
        self.made.append((generator, module, number, state))

    def _given(self, generator: Any) -> None:
        """Forget a generator that was given a seed: its state is the same in every process."""
        self.made = [one for one in self.made if one[0] is not generator]

    def generators(self) -> list[Generator]:
        """Return the generators that still exist; ``drawn`` is None if drawing numbers does not
        explain the state.
        """
        by_seed: dict[int, list[Any]] = {}
        seeds = {made for made, *_ in self.made if isinstance(made, int)}
        # Only if necessary: the list of all objects is long, and forks would pay for its memory.
        for one in gc.get_objects() if seeds - {_entropy(_numpy_global())} else ():
            if (entropy := _entropy(one)) is not None and one is not _numpy_global():
                by_seed.setdefault(entropy, []).append(one)
        ours = {id(self.made), *map(id, self.made)}
        found: list[Generator] = []
        for made, module, number, state in self.made:
            if isinstance(made, int):
                some = [(bits, _drawn_from_bits(bits)) for bits in by_seed.get(made, ())]
            elif any(id(user) not in ours for user in gc.get_referrers(made)):
                some = [(made, _drawn(state, _state(made)))]
            else:
                some = []
            found += (Generator(one, module, number, n) for one, n in some)
        return found

    def hidden(self) -> set[str]:
        """Return the modules that keep a seed sequence alone, which cannot be renewed."""
        kind: Any = getattr(sys.modules.get("numpy.random.bit_generator"), "SeedSequence", None)
        if kind is None:
            return set()
        makers = {made: module for made, module, _, _ in self.made if isinstance(made, int)}
        objects = gc.get_objects()
        known = {id(one.seed_seq) for one in objects if _entropy(one) is not None}
        loose = [one for one in objects if type(one) is kind and id(one) not in known]
        return {makers[one.entropy] for one in loose if one.entropy in makers}


#: A generator, its maker and number among the maker's generators, and how many numbers were drawn.
Generator = namedtuple("Generator", "generator maker number drawn")


def _state(generator: Any) -> Any:
    """Return the state of a generator of `random`, whatever its class overrides."""
    from random import Random

    return Random.getstate(generator)


def _drawn(before: Any, now: Any) -> int | None:
    """Return how many words a generator of `random` drew between two states; None if impossible."""
    from random import Random

    twister = Random()  # noqa: S311 - not for cryptography
    (*key, at), (*other, end) = before[1], now[1]
    for rounds in range(_ROUNDS):
        if key == other:
            return rounds * _NUMBERS + int(end) - int(at)
        twister.setstate((before[0], (*key, _NUMBERS), None))
        twister.getrandbits(32)
        key = list(twister.getstate()[1][:-1])
    return None


def _drawn_from_bits(bits: Any) -> int | None:
    """Return how many numbers a NumPy generator has drawn since the state that its seed gives."""
    state = _plain(bits.state)
    fresh = _kind(bits)(bits.seed_seq)
    for steps in range(_STEPS):
        if _plain(fresh.state) == state:
            return steps
        fresh.random_raw()
    return None


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a generator's state in a form that can be compared."""
    return {
        name: _plain(value)
        if type(value) is dict
        else getattr(value, "tolist", lambda v=value: v)()
        for name, value in state.items()
    }


def _kind(bits: Any) -> Any:
    """Return NumPy's own class of a bit generator, which a subclass may extend."""
    return next(kind for kind in type(bits).__mro__ if kind.__module__.startswith("numpy."))


def _entropy(value: Any) -> int | None:
    """Return the entropy with which a bit generator of NumPy was seeded."""
    module: Any = sys.modules.get("numpy.random.bit_generator")
    if module is None or not issubclass(type(value), module.BitGenerator):
        return None
    entropy = getattr(value.seed_seq, "entropy", None)
    return entropy if isinstance(entropy, int) else None


def _numpy_global() -> Any:
    """Return the bit generator behind the functions of ``numpy.random``, if it exists."""
    module: Any = sys.modules.get("numpy.random.mtrand")
    return getattr(getattr(module, "_rand", None), "_bit_generator", None)


# -- For a worker --------------------------------------------------------------------------


class Held:
    """Generators and values, held by modules of a zygote, that must be renewed for each worker."""

    def __init__(
        self,
        generators: list[Generator],
        places: Sequence[drawn_values.Place],
        *,
        seeds_random: bool = False,
        starts: Sequence[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = (),
    ) -> None:
        self.generators = generators
        #: See `deferred_starts`. Not made in the zygote, which also calls `renew`, in rehearsals.
        self._starts = starts
        self._zygote = os.getpid()
        #: The memory of global generators that are Mersenne Twisters; if that of `random` is
        #: unknown, it is seeded instead.
        self._twisters: list[tuple[memoryview, memoryview]] = []
        self._random: Any = sys.modules["random"] if seeds_random else None
        if self._random is not None and (ours := _random_twister()) is not None:
            self._random.seed()  # also drops the number that `random.gauss` may have kept
            self._random = None
            self._twisters.append(ours)
        if (numpys := _numpy_twister()) is not None:
            self._twisters.append(numpys)
        self.values: list[tuple[Any, str, drawn_values.Place]] = []
        if places:
            from .drawn_values import made_now, owner_of

            self._made_now = made_now
            for place in places:
                if (owner := owner_of(place)) is not None:
                    self.values.append((owner, place.path[-1], place))
        self._torch: Any = sys.modules.get("torch")
        self._multiprocessing: Any = sys.modules.get("multiprocessing.process")
        #: Whether a worker must renew anything itself.
        self.has_more = bool(
            self.generators or self.values or self._torch is not None or self._starts
        )

    def renew_globals(self) -> None:
        """In the zygote, before a fork: renew the global generators for the next worker."""
        for numbers, position in self._twisters:
            # Entropy is the state itself: seeding would access ten times as much memory.
            numbers[:] = os.urandom(_NUMBERS * _WORD)
            position[0] = _NUMBERS
        if self._random is not None:
            self._random.seed()
        if self._multiprocessing is not None:
            # The secret with which the processes of one program authenticate to each other.
            self._multiprocessing.current_process().authkey = os.urandom(_AUTHKEY_BYTES)

    def renew(self, seed: int | None) -> None:
        """In a worker, before its call: renew all others, from entropy or from the call's seed."""
        if self._starts and os.getpid() != self._zygote:
            for function, args, kwargs in self._starts:
                function(*args, **kwargs)
        resume: Callable[[str, int], None] = _no_seed
        if seed is not None:
            from . import seeding

            resume = seeding.resume
        elif self._torch is not None:
            # CUDA's generators are created when they are first needed, which never happens in a
            # zygote.
            self._torch.default_generator.seed()
        entropy: dict[tuple[str, int], int] = {}
        for one in self.generators:
            if not hasattr(one.generator, "seed_seq"):
                resume(one.maker, one.number)
                _renew_generator(one.generator, one.drawn if seed is not None else 0)
                continue
            source = one.maker, one.number
            if source not in entropy:
                resume(*source)
                entropy[source] = sys.modules["numpy.random.bit_generator"].SeedSequence().entropy
            _renew_bits(one.generator, entropy[source], one.drawn if seed is not None else 0)
        drawn: dict[int, Any] = {}
        for owner, name, place in self.values:
            setattr(owner, name, self._made_now(getattr(owner, name), place, drawn))


def _renew_generator(generator: Any, drawn: int) -> None:
    """Seed a generator of `random`, whatever its class overrides, and draw this many words."""
    from random import Random

    Random.seed(generator)
    if drawn:
        super(Random, generator).getrandbits(32 * drawn)


def _renew_bits(bits: Any, entropy: int, drawn: int) -> None:
    """Seed a bit generator of NumPy from this entropy, and draw this many numbers."""
    old = bits.seed_seq
    seeds = type(old)(entropy, spawn_key=old.spawn_key, pool_size=old.pool_size)
    seeds.spawn(old.n_children_spawned)
    fresh = _kind(bits)(seeds)
    if drawn:
        fresh.random_raw(drawn, output=False)
    try:
        bits.__setstate__((fresh.state, seeds))
    except (TypeError, ValueError, KeyError):
        bits.state = fresh.state  # NumPy before 1.25, whose seed sequence cannot be replaced


def _numpy_twister() -> tuple[memoryview, memoryview] | None:
    """Return the memory of NumPy's global generator: its numbers, and how many are used up.

    None if it does not exist, or is not a Mersenne Twister.
    """
    bits = _numpy_global()
    if type(bits).__name__ != "MT19937":
        return None
    address = int(bits.ctypes.state_address)
    return _twister(address, address + _NUMBERS * _WORD)


def _random_twister() -> tuple[memoryview, memoryview] | None:
    """Return the same for `random`; None if its layout is not CPython's (``_randommodule.c``)."""
    generator: Any = sys.modules["random"]._inst
    if sys.implementation.name != "cpython" or object.__basicsize__ != _HEAD:
        return None
    position = id(generator) + _HEAD
    numbers, at = found = _twister(position + _WORD, position)
    return found if (*numbers.cast("I"), at[0]) == _state(generator)[1] else None


def _twister(numbers: int, position: int) -> tuple[memoryview, memoryview]:
    """Return the memory at these addresses."""
    import ctypes

    words = (ctypes.c_ubyte * (_NUMBERS * _WORD)).from_address(numbers)
    used = (ctypes.c_int * 1).from_address(position)
    return memoryview(words).cast("B"), memoryview(used).cast("B").cast("i")


def _no_seed(_maker: str, _number: int) -> None:
    """Do nothing: without a seed, it does not matter which generator is renewed next."""
