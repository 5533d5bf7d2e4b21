"""Decides which idle instances are closed, and why, for `InstanceTable`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .states import UNNAMED_IDLE_S, Instance, InstanceState, ResidentPolicy


def dispensable(instance: Instance) -> tuple[bool, float]:
    """Return a sort key: first instances unlikely to be called again, then the longest idle."""
    return not instance.passing, instance.last_used


def due(instances: Iterable[Instance], policy: ResidentPolicy, now: float) -> dict[str, str]:
    """Return instances to close, with reasons: idle for too long, or using too much memory."""
    found = list(instances)
    going = {
        one.name: f"it had no call for {one_s:g} s" for one, one_s in _late(found, policy, now)
    }
    for limit, size, words in (
        (policy.memory_bytes, _memory, "{} MB (FLASHPOOL_INSTANCES_MB)"),
        (policy.gpu_bytes, _gpu_memory, "{} MB of GPU memory (FLASHPOOL_INSTANCES_GPU_MB)"),
    ):
        if limit is not None:
            reason = "the instances use more than " + words.format(limit >> 20)
            for name in _too_much([one for one in found if one.name not in going], limit, size):
                going[name] = reason
    return going


def _late(
    found: list[Instance], policy: ResidentPolicy, now: float
) -> Iterable[tuple[Instance, float]]:
    for one in found:
        idle_s = policy.idle_s
        if one.passing:
            idle_s = UNNAMED_IDLE_S if idle_s is None else min(UNNAMED_IDLE_S, idle_s)
        if idle_s is not None and one.idle and now - one.last_used > idle_s:
            yield one, idle_s


def _too_much(found: list[Instance], limit: int, size: Callable[[Instance], int]) -> list[str]:
    """Return idle instances to close, so that the others keep the limit; those that are closing
    already do not count.
    """
    used = sum(size(one) for one in found if one.state is not InstanceState.CLOSING)
    names = []
    for one in sorted((one for one in found if one.idle and size(one)), key=dispensable):
        if used <= limit:
            break
        used -= size(one)
        names.append(one.name)
    return names


def _memory(instance: Instance) -> int:
    return instance.memory_bytes


def _gpu_memory(instance: Instance) -> int:
    return instance.gpu_bytes
