"""Selects the GPUs that this pod may use, by the variables that it inherited.

    devices that NVML shows --NVIDIA_VISIBLE_DEVICES--CUDA_VISIBLE_DEVICES--> ours, in order

``NVIDIA_VISIBLE_DEVICES`` names the devices that the container was given. Normally NVML shows only
those, and the variable changes nothing; in a privileged container NVML shows all.

``CUDA_VISIBLE_DEVICES`` is read as CUDA reads it: numbers, UUIDs or unique prefixes of UUIDs,
separated by commas; the first entry that names no device ends the list; a device named twice makes
it empty. Numbers count in the order of ``CUDA_DEVICE_ORDER``. By default CUDA puts the fastest GPU
first, an order that only CUDA knows. If all GPUs are of one kind, this is the order of the PCI bus,
which NVML uses; otherwise the order of the bus is used nevertheless, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .devices import Device

NVIDIA: Final = "NVIDIA_VISIBLE_DEVICES"
CUDA: Final = "CUDA_VISIBLE_DEVICES"
ORDER: Final = "CUDA_DEVICE_ORDER"

#: A container runtime that provides devices by other means sets "void".
_SAY_NOTHING: Final = frozenset({"", "all", "void"})
_UUID: Final = ("GPU-", "MIG-")
_PART: Final = re.compile(r"(\d+):(\d+)")
#: CUDA reads the number at the beginning of an entry, and ignores what follows.
_NUMBER: Final = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """The devices we may use, in the order in which calls see them."""

    devices: tuple[Device, ...]
    #: Why no device is visible, if the variables are the reason.
    reason: str = ""
    warnings: tuple[str, ...] = ()


def visible(devices: Sequence[Device], environ: Mapping[str, str]) -> Visible:
    """Return the devices that the variables allow."""
    warnings: list[str] = []
    given = _given(devices, environ.get(NVIDIA), warnings)
    if devices and not given:
        return Visible(
            devices=(),
            reason=f"{NVIDIA}={environ.get(NVIDIA)} names none of the GPUs here",
            warnings=tuple(warnings),
        )
    chosen, reason = _chosen(given, environ, warnings)
    return Visible(devices=chosen, reason=reason, warnings=tuple(warnings))


# What the container was given.


def _given(devices: Sequence[Device], text: str | None, warnings: list[str]) -> tuple[Device, ...]:
    text = (text or "").strip()
    if text.lower() in _SAY_NOTHING:
        return tuple(devices)
    if text.lower() == "none":
        return ()
    entries = _entries(text)
    if all(entry.isdigit() or _PART.fullmatch(entry) for entry in entries):
        return _given_by_number(devices, entries, warnings)
    found = [device for device in devices if any(_is(device, entry) for entry in entries)]
    missing = [entry for entry in entries if not any(_is(one, entry) for one in devices)]
    if missing:
        warnings.append(f"{NVIDIA} names {', '.join(missing)}, which NVML does not show")
    return tuple(found)


def _given_by_number(
    devices: Sequence[Device], entries: list[str], warnings: list[str]
) -> tuple[Device, ...]:
    """Select devices by the host's numbers.

    A container has only its own devices, and NVML numbers them from 0.
    """
    gpus = {device.parent or device.uuid for device in devices}
    if len(gpus) <= len({entry.split(":")[0] for entry in entries}):
        return tuple(devices)
    found = tuple(one for one in devices if any(_is_numbered(one, entry) for entry in entries))
    warnings.append(
        f"NVML shows {len(gpus)} GPUs and {NVIDIA}={','.join(entries)} names fewer: "
        "its numbers are taken as those of the PCI order"
    )
    return found


def _is_numbered(device: Device, entry: str) -> bool:
    gpu, _, part = entry.partition(":")
    return device.index == int(gpu) and (not part or device.part == int(part))


def _is(device: Device, entry: str) -> bool:
    """Return whether an entry is the UUID of the device or of its GPU."""
    wanted = entry.lower()
    return wanted in {device.uuid.lower(), (device.parent or "").lower()}


# What CUDA would show.


def _chosen(
    devices: Sequence[Device], environ: Mapping[str, str], warnings: list[str]
) -> tuple[tuple[Device, ...], str]:
    text = environ.get(CUDA)
    if text is None:
        return tuple(devices), ""
    entries = _entries(text)
    if not entries:
        return (), f"{CUDA} is empty, so no GPU is visible"
    found: list[Device] = []
    for entry in entries:
        device = _find(devices, entry)
        if device is None:
            _tell_cut(entry, text, len(found), warnings)
            break
        if device in found:
            return (), f"{CUDA}={text} names a device twice; CUDA shows none then"
        found.append(device)
    if any(_NUMBER.match(entry) for entry in entries):
        _tell_order(devices, environ, warnings)
    reason = "" if found or not devices else f"{CUDA}={text} names none of the GPUs here"
    return tuple(found), reason


def _entries(text: str) -> list[str]:
    entries = [entry.strip() for entry in text.split(",")]
    return entries if any(entries) else []


def _find(devices: Sequence[Device], entry: str) -> Device | None:
    number = _NUMBER.match(entry)
    if number:
        return _numbered(devices, int(number[0]))
    if not entry.upper().startswith(_UUID):
        return None
    found = [device for device in devices if device.uuid.lower().startswith(entry.lower())]
    if not found:
        # For a GPU in MIG mode, CUDA shows its first part.
        found = [one for one in devices if (one.parent or "").lower().startswith(entry.lower())][:1]
    return found[0] if len(found) == 1 else None


def _numbered(devices: Sequence[Device], number: int) -> Device | None:
    """Return a device by CUDA's number of the whole GPU; in MIG mode, its first part."""
    first: dict[str, Device] = {}
    for device in sorted(devices, key=lambda one: one.index):
        first.setdefault(device.parent or device.uuid, device)
    gpus = list(first.values())
    return gpus[number] if 0 <= number < len(gpus) else None


def _tell_cut(entry: str, text: str, kept: int, warnings: list[str]) -> None:
    if entry != "-1":
        warnings.append(
            f"{CUDA}={text}: {entry or 'an empty entry'} names no single device here; "
            f"as in CUDA, the list ends before it ({kept} of it count)"
        )


def _tell_order(devices: Sequence[Device], environ: Mapping[str, str], warnings: list[str]) -> None:
    if environ.get(ORDER) == "PCI_BUS_ID" or len({device.name for device in devices}) < 2:
        return
    warnings.append(
        f"{CUDA} gives numbers, the GPUs here are of different kinds, and {ORDER} is not "
        "PCI_BUS_ID: CUDA may count them in another order than the PCI bus, by which they are "
        f"taken. Set {ORDER}=PCI_BUS_ID, or name UUIDs."
    )
