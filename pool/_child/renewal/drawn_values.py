"""Random values that modules drew when they were imported, and that each process must draw again.

    bytes, identifiers, tokens, numbers of a global generator, the process id, the time
        --find--> places: the attributes that hold them --made_now--> a new value of the same form

A value that also appears elsewhere, for example as a key of a dict, has no place: renewing only
some of its copies would make them differ. A value that was changed after it was drawn has no place
either.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

#: Fewest characters of a text that count as a part of a drawn value.
_PART = 8
_UUID_BYTES = 16
#: Modules whose draws `randomness` renews.
_RENEWED = ("multiprocessing.process",)
#: Modules whose drawn values have a place or are unused. This module of the platform's client draws
#: an identifier for use if RUNPOD_POD_ID is not set.
_AS_DRAWN = ("runpod.serverless.modules.worker_state",)

#: Where a module keeps a drawn value. ``owner`` and ``path``: a module, and a path of attributes.
#: ``form``: one of `_FORMS`, ``pid``, ``pid_text``, ``time``, or a function of a global generator.
#: ``draw``: the number of the draw, of ``length`` bytes. ``at``, ``size``: in a text, the part that
#: was drawn. ``arguments``: of the function, or the whole text of ``pid_text``.
Place = namedtuple("Place", "owner path form draw length at size arguments", defaults=((),))


def find(draws: list[tuple[str, bytes]], modules: list[str]) -> tuple[list[Place], set[str]]:
    """Return the places of draws, and the modules that keep a draw where it cannot be renewed."""
    if not draws:
        return [], set()
    held = [one for name in modules for one in _held_by(name)]
    places: list[Place] = []
    #: By value that was drawn, or that contains a part of a draw: the number of the draw.
    values: dict[Any, int] = {}
    for number, (_, drawn) in enumerate(draws):
        _find_one(number, drawn, held, places, values)
    held.clear()
    lost = _kept_elsewhere(values, {id(values), id(draws), *map(id, draws)})
    # Draws that cannot be found unchanged may have been turned into something else.
    unplaced = set(range(len(draws))) - {place.draw for place in places}
    lost |= {number for number in unplaced if draws[number][0] not in _AS_DRAWN}
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
    """Return the draws that appear in containers other than attributes, such as keys of a dict.

    No renewal reaches these copies, and renewing only the attributes would make them differ.
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
    """Yield the members of a container; for attributes, their names."""
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
            # The collector skips containers that hold only texts and numbers.
            yield from _members(one)
        elif not is_namespace:
            yield one


def _namespaces() -> set[int]:
    """Return the addresses of the attribute dicts that `_held_by` searches."""
    owners = list(sys.modules.values())
    owners += [value for module in owners for value in _namespace(module).values()]
    # A class shows its attributes through a proxy; `get_referents` returns the dict itself.
    return {id(one) for owner in owners for one in gc.get_referents(owner) if type(one) is dict}


def find_numbers(form: str, values: Iterable[float], module: str) -> list[Place]:
    """Return places of attributes of a module that are one of these numbers."""
    kind = int if form == "pid" else float
    wanted = set(values)
    return [
        Place(owner, path, form, 0, 0, 0, 0)
        for owner, path, value in _held_by(module)
        if type(value) is kind and value in wanted
    ]


def find_texts(pid: int, module: str) -> list[Place]:
    """Return places of texts, in attributes of a module, that contain this process id."""
    return [
        Place(owner, path, "pid_text", 0, 0, 0, 0, (value,))
        for owner, path, value in _held_by(module)
        if type(value) is str and _names(pid, value) and not path[-1].startswith("__")
    ]


def owner_of(place: Place) -> Any:
    """Return the object that has the attribute in this process; None if no object has it."""
    owner: Any = sys.modules.get(place.owner)
    for name in place.path[:-1]:
        owner = getattr(owner, name, None)
    return owner if owner is not None and hasattr(owner, place.path[-1]) else None


def is_by_chance(place: Place) -> bool:
    """Return whether the attribute does not depend on the process id, as a scout had suspected.

    A number or text that two processes share does not depend on their ids, which differ.
    """
    value = getattr(owner_of(place), place.path[-1], None)
    if place.form == "pid":
        return bool(value != os.getpid())
    if place.form == "pid_text":
        return value == place.arguments[0] or not _names(os.getpid(), str(value))
    return False


def _names(pid: int, text: str) -> bool:
    return _as_a_whole(pid).search(text) is not None


def _as_a_whole(pid: int) -> re.Pattern[str]:
    return re.compile(rf"(?<!\d){pid}(?!\d)")


def find_drawn(numbers: list[tuple[str, str, tuple[Any, ...], Any]]) -> list[Place]:
    """Return places of numbers in modules that were drawn from global generators."""
    places = []
    for draw, (module, function, arguments, value) in enumerate(numbers):
        for owner, path, held in _held_by(module):
            if held is value or (type(held) is type(value) is float and held == value):
                places.append(Place(owner, path, function, -draw - 1, 0, 0, 0, arguments))
    return places


def _held_by(name: str) -> Iterator[tuple[str, list[str], Any]]:
    """Yield attributes of a module, of the classes it defines, and of the objects it keeps."""
    for attribute, value in _namespace(sys.modules.get(name)).items():
        yield name, [attribute], value
        if issubclass(type(value), type) and getattr(value, "__module__", None) != name:
            continue
        if type(value) not in _PLAIN:
            yield from ((name, [attribute, one], held) for one, held in _namespace(value).items())


#: Types without attributes worth searching; modules are searched separately.
_PLAIN = {str, bytes, int, float, bool, type(None), type(len), type(find), type(sys)}


def _namespace(owner: object) -> dict[str, Any]:
    """Return the attributes of a module, a class or any other object.

    The type is queried, never the object: a proxy would answer for another object, or raise.
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
    """Return the length of the longest beginning of ``made`` that ``value`` contains."""
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


#: Usual ways to turn random bytes into a value.
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


def made_now(old: Any, place: Place, drawn: dict[int, Any]) -> Any:
    """Return a new value of the same form; ``drawn``: new draws so far, for several places."""
    if place.form == "pid":
        return os.getpid()
    if place.form == "pid_text":
        return _as_a_whole(os.getppid()).sub(str(os.getpid()), old)
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
