"""Generators of random numbers, and other values of a zygote's that each worker must have anew.

    zygote:  with Makers(): import ... -> which generators were seeded from entropy
    scout:   what imports drew --find--> places: attributes that hold it
    worker:  renew(seed) -> generators and values as a fresh process would have made them

A fresh process seeds its generators from the system's entropy. A fork has those of its zygote, and
all forks would draw the same numbers. Generators that were given a seed keep it: in a fresh process
they would draw the same, too. ``seed`` is a call's own (`seeding`).
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import namedtuple

from .recorders import importing_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

#: Characters of a text that are taken for a part of a value that was drawn, at least.
_PART = 8
_UUID_BYTES = 16
#: A ``struct mt19937_state``: 624 numbers of 32 bits, and how many of them are used up
#: (numpy/random/src/mt19937/mt19937.h).
_NUMBERS, _WORD = 624, 4
#: As `multiprocessing` has it.
_AUTHKEY_BYTES = 32
#: Modules whose draws `Held.renew` knows of.
_RENEWED = ("multiprocessing.process",)

#: Where a module keeps something drawn. ``owner`` and ``path``: a module and attributes. ``form``:
#: one of `_FORMS`, ``pid``, ``time``, or a function of a global generator. ``draw`` counts draws,
#: of ``length`` bytes. Of texts: the part that was drawn; of functions: their arguments.
Place = namedtuple("Place", "owner path form draw length at size arguments", defaults=((),))


# -- In the zygote: whose generators ------------------------------------------------------


class Makers:
    """Sees generators being made while modules are imported."""

    def __init__(self) -> None:
        #: Each generator, or the seed of one of NumPy's; its module, and its number there.
        self.made: list[tuple[Any, str, int]] = []
        self._numbers: dict[str, int] = {}
        self._randbits: Callable[[int], int] | None = None

    def __enter__(self) -> Makers:
        import random

        self._seed = seed = random.Random.seed
        made = self._made

        def recorded(generator: Any, a: Any = None, *args: Any, **kwargs: Any) -> None:
            seed(generator, a, *args, **kwargs)
            if a is None:
                made(generator)

        random.Random.seed = recorded  # type: ignore[assignment]
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.modules["random"].Random.seed = self._seed
        if self._randbits is not None:
            sys.modules["numpy.random.bit_generator"].randbits = self._randbits  # type: ignore[attr-defined]
        sys.meta_path.remove(self)

    def find_spec(self, _name: str, _path: object = None, _target: object = None) -> None:
        """See NumPy being imported, whose generators take their seeds from a function of it."""
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
        self.made.append((generator, module, number))

    def generators(self) -> list[tuple[Any, str, int]]:
        """Those that somebody still has."""
        bits = [one for one in gc.get_objects() if _entropy(one) is not None]
        by_seed = {_entropy(one): one for one in bits}
        ours = {id(self.made), *map(id, self.made)}
        found = []
        for made, module, number in self.made:
            generator = by_seed.get(made) if isinstance(made, int) else made
            users = gc.get_referrers(generator) if generator is made else [generator]
            alive = any(id(user) not in ours for user in users)
            if alive and generator is not None and generator is not _numpy_global():
                found.append((generator, module, number))
        return found


def _entropy(value: Any) -> int | None:
    """What one of NumPy's generators of bits was seeded with."""
    module: Any = sys.modules.get("numpy.random.bit_generator")
    if module is None or not issubclass(type(value), module.BitGenerator):
        return None
    entropy = getattr(value.seed_seq, "entropy", None)
    return entropy if isinstance(entropy, int) else None


def _numpy_global() -> Any:
    """The generator of bits behind ``numpy.random``'s own functions."""
    module: Any = sys.modules.get("numpy.random.mtrand")
    return getattr(getattr(module, "_rand", None), "_bit_generator", None)


# -- In the scout: where values are --------------------------------------------------------


def find(draws: list[tuple[str, bytes]], modules: list[str]) -> tuple[list[Place], set[str]]:
    """The places of what was drawn; and the modules that keep a draw where it cannot be renewed."""
    if not draws:
        return [], set()
    held = [one for name in modules for one in _held_by(name)]
    places: list[Place] = []
    #: Values that were drawn, or hold a part of one: which draw.
    values: dict[Any, int] = {}
    for number, (_, drawn) in enumerate(draws):
        _find_one(number, drawn, held, places, values)
    held.clear()
    lost = _kept_elsewhere(values, {id(values), *map(id, draws)})
    lost = {number for number in lost if draws[number][0] not in _RENEWED}
    return [one for one in places if one.draw not in lost], {draws[one][0] for one in lost}


def _find_one(
    number: int, drawn: bytes, held: list[Any], places: list[Place], values: dict[Any, int]
) -> None:
    forms = [(form, make(drawn)) for form, make in _FORMS.items() if _fits(form, drawn)]
    for _, made in forms:
        values[made] = number
    for owner, path, value in held:
        for place in _places(number, drawn, forms, owner, path, value):
            places.append(place)
            values[value] = number


def _kept_elsewhere(values: dict[Any, int], ours: set[int]) -> set[int]:
    """Which draws stand in other containers than attributes, as a key of a table for example.

    No renewal would reach these, and one of the attributes alone would tear them apart.
    """
    kinds = {type(value) for value in values}
    namespaces = _namespaces()
    found: set[int] = set()
    gc.collect()
    for container in gc.get_objects():
        if id(container) not in ours:
            for one in _members(container, is_namespace=id(container) in namespaces):
                if type(one) in kinds and one in values:
                    found.add(values[one])
    return found


def _members(container: Any, *, is_namespace: bool = False) -> Iterator[Any]:
    """What stands in a container; of attributes, their names."""
    kind = type(container)
    if kind is dict:
        yield from list(container)
        content = list(container.values())
    elif kind in (list, tuple, set, frozenset):
        content = list(container)
    else:
        return
    for one in content:
        if type(one) in (dict, tuple) and not gc.is_tracked(one):
            # The collector passes over those that hold only texts and numbers.
            yield from _members(one)
        elif not is_namespace:
            yield one


def _namespaces() -> set[int]:
    """The tables of attributes that `_held_by` looks at, by their addresses."""
    owners = list(sys.modules.values())
    owners += [value for module in owners for value in _namespace(module).values()]
    # A class shows its attributes through a proxy, an object or a module its own table.
    return {id(one) for owner in owners for one in gc.get_referents(owner) if type(one) is dict}


def find_numbers(form: str, values: Iterable[float], module: str) -> list[Place]:
    """Attributes of a module that are one of these numbers."""
    kind = int if form == "pid" else float
    wanted = set(values)
    return [
        Place(owner, path, form, 0, 0, 0, 0)
        for owner, path, value in _held_by(module)
        if type(value) is kind and value in wanted
    ]


def find_drawn(numbers: list[tuple[str, str, tuple[Any, ...], Any]]) -> list[Place]:
    """Attributes of modules that are numbers which they drew from a global generator."""
    places = []
    for draw, (module, function, arguments, value) in enumerate(numbers):
        for owner, path, held in _held_by(module):
            if held is value or (type(held) is type(value) is float and held == value):
                places.append(Place(owner, path, function, -draw - 1, 0, 0, 0, arguments))
    return places


def _held_by(name: str) -> Iterator[tuple[str, list[str], Any]]:
    """Attributes of a module, of the classes it defines, and of the objects it keeps."""
    for attribute, value in _namespace(sys.modules.get(name)).items():
        yield name, [attribute], value
        if issubclass(type(value), type) and getattr(value, "__module__", None) != name:
            continue
        if type(value) not in _PLAIN:
            yield from ((name, [attribute, one], held) for one, held in _namespace(value).items())


#: What has no attributes worth a look; modules come by themselves.
_PLAIN = {str, bytes, int, float, bool, type(None), type(len), type(find), type(sys)}


def _namespace(owner: object) -> dict[str, Any]:
    """The attributes of a module, a class or an object, of any kind.

    Asked of the kind, and never of the object: a proxy would answer for what it stands for, or raise.
    """
    try:
        get = type.__getattribute__ if issubclass(type(owner), type) else object.__getattribute__
        found = get(owner, "__dict__")
        return {name: value for name, value in dict(found).items() if type(name) is str}
    except Exception:
        return {}


def _places(
    number: int, drawn: bytes, forms: list[tuple[str, Any]], owner: str, path: list[str], value: Any
) -> Iterator[Place]:
    for form, made in forms:
        if type(value) is not type(made):
            continue
        if type(made) is str:
            size = _common(made, value)
            if size >= min(_PART, len(made)):
                at = value.index(made[:size])
                yield Place(owner, path, form, number, len(drawn), at, size)
                return
        elif made == value:
            yield Place(owner, path, form, number, len(drawn), 0, 0)
            return


def _common(made: str, value: str) -> int:
    """Characters of the beginning of one text that stand in the other."""
    size = len(made)
    while size and made[:size] not in value:
        size -= 1
    return size


def _fits(form: str, value: bytes) -> bool:
    return len(value) == _UUID_BYTES or not form.startswith("uuid")


def _uuid(value: bytes) -> Any:
    from uuid import UUID

    return UUID(bytes=value, version=4)


def _urlsafe(value: bytes) -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


#: What is mostly made of random bytes.
_FORMS: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda value: value,
    "hex": bytes.hex,
    "urlsafe": _urlsafe,
    "integer": lambda value: int.from_bytes(value, "big"),
    "uuid": _uuid,
    "uuid_text": lambda value: str(_uuid(value)),
    "uuid_hex": lambda value: _uuid(value).hex,
    "uuid_integer": lambda value: _uuid(value).int,
}


# -- In a worker ---------------------------------------------------------------------------


class Held:
    """What the modules of a zygote hold, to be renewed in each worker."""

    def __init__(self, generators: list[tuple[Any, str, int]], places: Iterable[Place]) -> None:
        self.generators = generators
        self.values: list[tuple[Any, str, Place]] = []
        for place in places:
            owner: Any = sys.modules.get(place.owner)
            for name in place.path[:-1]:
                owner = getattr(owner, name, None)
            if owner is not None and hasattr(owner, place.path[-1]):
                self.values.append((owner, place.path[-1], place))
        self._numpy = _numpy_state_address()
        self._torch: Any = sys.modules.get("torch")
        self._multiprocessing: Any = sys.modules.get("multiprocessing.process")

    def renew(self, seed: int | None) -> None:
        """Before a call: as if all had been made now, or as its seed has them."""
        resume: Callable[[str, int], None] = _no_seed
        if seed is not None:
            from . import seeding

            resume = seeding.resume
        else:
            if self._numpy:
                _write_numpy_state(self._numpy)
            if self._torch is not None:
                # Those of CUDA are made when they are first needed, which no zygote does.
                self._torch.default_generator.seed()
        if self._multiprocessing is not None:
            # The secret of connections among the processes of one program.
            self._multiprocessing.current_process().authkey = os.urandom(_AUTHKEY_BYTES)
        for generator, maker, number in self.generators:
            resume(maker, number)
            _renew_generator(generator)
        drawn: dict[int, Any] = {}
        for owner, name, place in self.values:
            setattr(owner, name, _made_now(getattr(owner, name), place, drawn))


def _made_now(old: Any, place: Place, drawn: dict[int, Any]) -> Any:
    if place.form == "pid":
        return os.getpid()
    if place.form == "time":
        return time.time()
    value = drawn.get(place.draw)
    if value is None:
        module, _, function = place.form.rpartition(".")
        if module:
            value = getattr(sys.modules[module], function)(*place.arguments)
        else:
            value = os.urandom(place.length)
        drawn[place.draw] = value
    if place.form not in _FORMS:
        return value
    made = _FORMS[place.form](value)
    if place.size:
        made = old[: place.at] + made[: place.size] + old[place.at + place.size :]
    return made


def _renew_generator(generator: Any) -> None:
    """Give it the state of one that is made now."""
    if hasattr(generator, "setstate"):
        generator.setstate(type(generator)().getstate())
    else:
        generator.state = type(generator)().state


def _numpy_state_address() -> int:
    """Where NumPy's global generator has its numbers; 0 where it has none, or is of another kind."""
    bits = _numpy_global()
    return int(bits.ctypes.state_address) if type(bits).__name__ == "MT19937" else 0


def _write_numpy_state(address: int) -> None:
    """Fill it with entropy itself: NumPy's own way to seed it takes ten times as long."""
    import ctypes

    ctypes.memmove(address, os.urandom(_NUMBERS * _WORD), _NUMBERS * _WORD)
    ctypes.c_int.from_address(address + _NUMBERS * _WORD).value = _NUMBERS


def _no_seed(_maker: str, _number: int) -> None:
    """Whose generator is made anew matters to nobody."""
