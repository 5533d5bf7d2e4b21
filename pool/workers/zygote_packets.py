"""Requests of the supervisor to a zygote, as packets of its control socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache

from flashpool.pool._child import wire


def packet(op: str, **fields: object) -> bytes:
    """Return a request to the zygote, as a packet."""
    return json.dumps({"op": op, **fields}).encode()


@lru_cache(maxsize=64)
def fork_packet(number: int, practise: str) -> bytes:
    """Return a request for workers; cached, as the same few packets are sent again and again."""
    return packet(wire.FORK, n=number, practise=practise)


def in_packets(names: tuple[str, ...]) -> Iterator[list[str]]:
    """Split names into parts that fit one packet each, however JSON encodes them."""
    part: list[str] = []
    size = 0
    for name in names:
        part.append(name)
        size += len(name)
        if size > wire.PACKET_LIMIT // 8:
            yield part
            part, size = [], 0
    if part:
        yield part
