"""Which GPUs the inherited variables make visible to a pod."""

import pytest

from flashpool.pool.gpus.devices import Device
from flashpool.pool.gpus.visible_devices import visible


def gpu(index: int, name: str = "H100", uuid: str | None = None) -> Device:
    return Device(
        uuid=uuid or f"GPU-{index}{index}aa-bb", index=index, name=name, memory_bytes=1 << 36
    )


def part(index: int, number: int) -> Device:
    return Device(
        uuid=f"MIG-{index}{number}cc-dd",
        index=index,
        name="MIG",
        memory_bytes=1 << 34,
        parent=f"GPU-{index}{index}aa-bb",
        part=number,
    )


FOUR = [gpu(index) for index in range(4)]
#: Two whole GPUs, and between them one that is split into two MIG devices.
CUT = [gpu(0), part(1, 0), part(1, 1), gpu(2)]


def numbers(devices: list[Device], **variables: str) -> list[int]:
    return [devices.index(one) for one in visible(devices, variables).devices]


def cuda(text: str) -> list[int]:
    return numbers(FOUR, CUDA_VISIBLE_DEVICES=text)


def test_without_variables_all_devices_are_visible() -> None:
    assert numbers(FOUR) == [0, 1, 2, 3]
    assert not visible([], {}).reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", [0]),
        ("3,1", [3, 1]),
        (" 2 , 0 ", [2, 0]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("0,-1,1", [0]),
        ("1,7,2", [1]),
        ("1,,2", [1]),
        ("0,0", []),
        ("nonsense", []),
        ("NoDevFiles", []),
        ("2gpu", [2]),
        ("GPU-22aa-bb", [2]),
        ("GPU-22,GPU-00", [2, 0]),
        ("gpu-33AA", [3]),
        ("GPU-", []),
        ("GPU-99", []),
        ("GPU-11,0", [1, 0]),
    ],
)
def test_cuda_visible_devices_is_parsed_as_cuda_parses_it(text: str, expected: list[int]) -> None:
    assert cuda(text) == expected


@pytest.mark.parametrize("text", ["", "0,0", "-1", "99"])
def test_the_reason_is_given_when_no_device_is_visible(text: str) -> None:
    assert "CUDA_VISIBLE_DEVICES" in visible(FOUR, {"CUDA_VISIBLE_DEVICES": text}).reason


def test_an_entry_that_names_no_device_is_warned_of() -> None:
    (warning,) = visible(FOUR, {"CUDA_VISIBLE_DEVICES": "1,7,2"}).warnings
    assert "7 names no single device here" in warning
    assert not visible(FOUR, {"CUDA_VISIBLE_DEVICES": "1,-1"}).warnings


def test_mig_devices_are_selected() -> None:
    assert numbers(CUT) == [0, 1, 2, 3]
    assert numbers(CUT, CUDA_VISIBLE_DEVICES="MIG-11cc-dd") == [2]
    assert numbers(CUT, CUDA_VISIBLE_DEVICES="MIG-10,MIG-11") == [1, 2]
    assert numbers(CUT, CUDA_VISIBLE_DEVICES="2,1") == [3, 1], "a whole one, and a first part"
    assert numbers(CUT, CUDA_VISIBLE_DEVICES="GPU-11") == [1]


def test_numbers_of_mixed_gpus_are_warned_of_unless_the_order_is_set() -> None:
    mixed = [gpu(0, "T400"), gpu(1, "H100")]
    doubtful = visible(mixed, {"CUDA_VISIBLE_DEVICES": "0"})
    assert doubtful.devices == (mixed[0],)
    assert "CUDA_DEVICE_ORDER" in doubtful.warnings[0]
    for variables in (
        {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        {"CUDA_VISIBLE_DEVICES": "GPU-00"},
        {},
    ):
        assert not visible(mixed, variables).warnings
    assert not visible(FOUR, {"CUDA_VISIBLE_DEVICES": "0"}).warnings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("void", [0, 1, 2, 3]),
        ("none", []),
        ("GPU-22aa-bb", [2]),
        ("GPU-22aa-bb,GPU-00aa-bb", [0, 2]),
        ("4,5,6,7", [0, 1, 2, 3]),
        ("1,3", [1, 3]),
    ],
)
def test_nvidia_visible_devices_is_honoured(text: str, expected: list[int]) -> None:
    assert numbers(FOUR, NVIDIA_VISIBLE_DEVICES=text) == expected


def test_nvidia_visible_devices_may_name_mig_devices() -> None:
    assert numbers(CUT, NVIDIA_VISIBLE_DEVICES="MIG-11cc-dd") == [2]
    assert numbers(CUT, NVIDIA_VISIBLE_DEVICES="GPU-11aa-bb") == [1, 2]
    assert numbers(CUT, NVIDIA_VISIBLE_DEVICES="1:1") == [2]


def test_cuda_numbers_count_among_the_containers_devices() -> None:
    given = {"NVIDIA_VISIBLE_DEVICES": "GPU-22aa-bb,GPU-33aa-bb", "CUDA_VISIBLE_DEVICES": "1"}
    assert numbers(FOUR, **given) == [3]


def test_unknown_uuids_are_warned_of() -> None:
    seen = visible(FOUR, {"NVIDIA_VISIBLE_DEVICES": "GPU-00aa-bb,GPU-gone"})
    assert len(seen.devices) == 1
    assert seen.warnings == ("NVIDIA_VISIBLE_DEVICES names GPU-gone, which NVML does not show",)
    none = visible(FOUR, {"NVIDIA_VISIBLE_DEVICES": "GPU-gone"})
    assert not none.devices
    assert "NVIDIA_VISIBLE_DEVICES=GPU-gone" in none.reason
