"""Parcels: what travels in the message and what in a descriptor, and who closes the descriptor."""

import errno
import gc
import os
import pickle
import sys
import textwrap
import weakref

import numpy as np
import pytest

from flashpool.pool import pickling
from flashpool.pool._child.running.invoke import each
from flashpool.pool._child.serialization import payload, shared_buffers
from flashpool.pool._child.serialization.by_value import lost_modules

MIB = 1 << 20


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum("flashpool" in line and "memfd" in line for line in maps)


def round_trip(value, **options):
    body, fds = payload.pack(value, pickling.dumps, **options)
    return payload.load_result(body, fds)


@pytest.mark.parametrize(
    "value", [None, 0, -1, 1.5, "ä", b"x" * 100_000, [1, [2]], {"a": (1, 2)}, {1, 2}, 10**400]
)
def test_small_values_need_no_descriptor(value):
    body, fds = payload.pack(value, pickling.dumps)
    assert fds == []
    assert payload.load_result(body, fds) == value


def test_large_array_travels_beside_a_small_message_and_arrives_writable():
    array = np.arange(MIB, dtype="f8")
    body, fds = payload.pack({"a": array}, pickling.dumps)
    assert len(fds) == 1
    assert len(body) < 1000
    back = payload.load_result(body, fds)["a"]
    assert np.array_equal(back, array)
    back += 1
    assert back[0] == 1
    assert array[0] == 0


def test_read_only_arrays_stay_read_only():
    array = np.zeros(MIB)
    array.flags.writeable = False
    back = round_trip(array)
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


def test_many_buffers_share_one_descriptor_and_are_aligned():
    arrays = [np.full(100_001, i, dtype="u1") for i in range(20)]
    body, fds = payload.pack(arrays, pickling.dumps)
    assert len(fds) == 1
    back = payload.load_result(body, fds)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, back, strict=True))
    assert all(one.ctypes.data % shared_buffers.ALIGNMENT == 0 for one in back)


@pytest.mark.parametrize("order", ["C", "F"])
def test_shape_and_order_survive(order):
    array = np.asarray(np.arange(600_000).reshape(300, 2000), order=order)
    back = round_trip(array)
    assert np.array_equal(back, array)
    assert back.flags[f"{order}_CONTIGUOUS"]


def test_arrays_that_are_not_contiguous_travel_in_the_pickle():
    array = np.arange(600_000).reshape(300, 2000)[::2, ::3]
    assert np.array_equal(round_trip(array), array)


def test_a_large_pickle_travels_in_the_descriptor():
    body, fds = payload.pack([b"x" * (3 * MIB), "y"], pickling.dumps)
    assert len(body) < 1000
    assert payload.load_result(body, fds) == [b"x" * (3 * MIB), "y"]


def test_empty_and_tiny_buffers_survive():
    value = [np.zeros(0), np.zeros(1), np.zeros((0, 5)), np.zeros(MIB)]
    assert [one.shape for one in round_trip(value)] == [(0,), (1,), (0, 5), (MIB,)]


def test_memory_is_unmapped_with_the_last_array_over_it():
    before = mappings()
    back = round_trip(np.zeros(MIB))
    part = back[10:20]
    del back
    gc.collect()
    assert mappings() == before + 1
    del part
    gc.collect()
    assert mappings() == before


def test_no_descriptor_is_left_once_the_value_is_gone():
    before = descriptors()
    for size in (100_000, 10 * MIB):
        value = round_trip(np.zeros(size, dtype="u1"))
        assert value.nbytes == size
        del value
    gc.collect()
    assert descriptors() == before


def test_values_held_in_any_number_do_not_use_up_descriptors(monkeypatch):
    monkeypatch.setattr(shared_buffers, "MAX_MAPPINGS", 4)
    before = descriptors()
    held = [round_trip(np.full(shared_buffers.COPY_BELOW + 1, i, dtype="u1")) for i in range(10)]
    assert [one[0] for one in held] == list(range(10))
    assert descriptors() - before <= (0 if sys.version_info >= (3, 13) else 4)


def test_a_pickling_error_leaves_no_descriptor():
    before = descriptors()
    with pytest.raises(TypeError):
        payload.pack([np.zeros(MIB), (i for i in range(3))], pickling.dumps)
    assert descriptors() == before


class Explosive:
    def __reduce__(self):
        return explode, ()


def explode():
    raise RuntimeError("boom")


def test_an_unpickling_error_leaves_no_descriptor_and_no_mapping():
    before, mapped = descriptors(), mappings()
    body, fds = payload.pack([np.zeros(MIB), Explosive()], pickling.dumps)
    with pytest.raises(RuntimeError, match="boom"):
        payload.load_result(body, fds)
    gc.collect()
    assert descriptors() == before
    assert mappings() == mapped


def test_sealed_memory_can_be_read_twice_with_independent_copies():
    body, fds = payload.pack(np.zeros(MIB), pickling.dumps, sealed=True)
    copies = [payload.duplicate((body, fds)) for _ in range(2)]
    first = payload.load_result(*copies[0])
    first += 1
    second = payload.load_result(*copies[1])
    assert first[0] == 1
    assert second[0] == 0
    os.close(fds[0])


def test_memory_cannot_be_resized_under_its_reader():
    _, (fd,) = payload.pack(np.zeros(MIB), pickling.dumps)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 10)
    os.close(fd)


def test_without_memfd_an_unnamed_file_does(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    body, fds = payload.pack([np.arange(MIB), b"x" * (2 * MIB)], pickling.dumps)
    # Do not list /dev/shm: other programs create files there, too.
    assert os.fstat(fds[0]).st_nlink == 0
    back = payload.load_result(body, fds)
    assert np.array_equal(back[0], np.arange(MIB))
    back[0][0] = 7


def test_without_any_descriptor_the_buffers_travel_in_the_message(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(shared_buffers, "_new", refuse)
    body, fds = payload.pack(np.arange(MIB), pickling.dumps)
    assert fds == []
    assert np.array_equal(payload.load_result(body, fds), np.arange(MIB))


def test_shared_memory_that_is_full_leaves_no_descriptor(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    before = descriptors()
    monkeypatch.setattr(os, "pwrite", refuse)
    _, fds = payload.pack(np.zeros(MIB), pickling.dumps)
    assert fds == []
    assert descriptors() == before


# Calls.


def add(a, b, *, c=0):
    return a + b + c


@pytest.fixture(autouse=True)
def _nothing_received():
    yield
    if shared_buffers.received is not None:
        shared_buffers.received.close()
        shared_buffers.received = None


def pack_call(function, arguments, kind=payload.ONE):
    return payload.pack_call(
        payload.pack(function, pickling.dumps), payload.pack(arguments, pickling.dumps), kind
    )


def test_a_calls_arguments_arrive():
    function, args, kwargs = payload.load_call(*pack_call(add, ((1, 2), {"c": 3})), each)
    assert function(*args, **kwargs) == 6


def test_function_and_arguments_may_both_have_large_memory():
    big, other = np.full(MIB, 2.0), np.full(MIB, 3.0)
    body, fds = pack_call(lambda x: float((big * x).sum()), ((other,), {}))
    assert len(fds) == 2
    function, args, kwargs = payload.load_call(body, fds, each)
    assert fds == []
    assert function(*args, **kwargs) == 6.0 * MIB


def test_a_chunk_contains_many_calls():
    body, fds = pack_call(add, [(1, 2), (3, 4)], payload.EACH)
    function, args, kwargs = payload.load_call(body, fds, each)
    assert function(*args, **kwargs) == [3, 7]


def test_descriptors_of_a_call_that_cannot_be_loaded_are_closed():
    before = descriptors()
    body, fds = pack_call(Explosive(), ((np.zeros(MIB),), {}))
    with pytest.raises(RuntimeError, match="boom"):
        payload.load_call(body, fds, each)
    gc.collect()
    assert descriptors() == before


def test_the_error_for_an_unpicklable_result_names_its_type():
    with pytest.raises(Exception, match=r"of type generator.*cannot be pickled") as raised:
        payload.dump_result(i for i in range(3))
    assert type(raised.value).__name__ == "Unserializable"


def test_a_workers_result_is_read_here():
    body, fds = payload.dump_result({"x": np.arange(MIB), "f": lambda: 7})
    back = payload.load_result(body, fds)
    assert back["f"]() == 7
    assert back["x"][-1] == MIB - 1


@pytest.fixture
def received():
    """Arguments as a worker receives them, in memory that no other process shares."""
    array = np.arange(MIB, dtype="f8")
    _, args, _ = payload.load_call(*pack_call(add, ((array, np.arange(20_000)), {})), each)
    args = list(args)
    yield args
    args.clear()  # pytest keeps the arguments alive, and with them the mapping


def same_memory(result, last=True):
    """Return whether a result travels in the memory of the arguments, and what arrives."""
    body, fds = payload.dump_result(result, last=last)
    in_place = os.fstat(fds[0]).st_ino == shared_buffers.received._identity[1]
    return payload.load_result(body, fds), in_place


@pytest.mark.parametrize("part", [slice(None), slice(1, -1), slice(0, 600_000)], ids=str)
def test_arguments_are_returned_in_their_memory(received, part):
    received[0][:] *= 2
    back, in_place = same_memory({"x": received[0][part]})
    assert in_place
    assert np.array_equal(back["x"], 2 * np.arange(MIB, dtype="f8")[part])


@pytest.mark.parametrize(
    "result",
    [
        lambda x: x[:100_000],
        lambda x: [x, x.view()],
        lambda x: np.append(x, x),
        lambda x: [x, np.zeros(MIB)],
        lambda x: x[::4].copy(),
    ],
    ids=["a small part", "twice the same", "something larger", "something new beside it", "less"],
)
@pytest.mark.slow
def test_results_that_cannot_be_returned_in_place_are_copied(received, result):
    expected = result(np.arange(MIB, dtype="f8"))
    back, in_place = same_memory(result(received[0]))
    assert not in_place
    assert all(map(np.array_equal, back, expected))


@pytest.mark.parametrize(
    "result", [lambda x: [x + 1], lambda x: np.split(x + 1, 8), lambda x: [x[::-1].copy()]]
)
def test_a_new_result_of_the_same_size_reuses_the_memory_of_arguments(received, result):
    expected = result(np.arange(MIB, dtype="f8"))
    back, in_place = same_memory(result(received[0]))
    assert in_place
    assert all(map(np.array_equal, back, expected))


def test_nothing_is_returned_in_place_while_the_process_lives_on(received):
    back, in_place = same_memory(received[0], last=False)
    assert not in_place
    assert np.array_equal(back, received[0])


def test_a_descriptor_that_user_code_closed_or_reused_is_not_sent(received):
    fd = shared_buffers.received._fd
    os.close(fd)
    assert not same_memory(received[0])[1]
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, fd)
    os.close(null) if null != fd else None
    assert not same_memory(received[0])[1]


def test_read_only_arguments_are_not_returned_in_place(received):
    received[0].flags.writeable = False
    back, in_place = same_memory(received[0])
    assert not in_place
    assert not back.flags.writeable


# The program's pickler.


def load_module(name, tmp_path, text):
    import importlib.util

    path = tmp_path / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lost_module(tmp_path):
    module = load_module(
        "a_lost_module", tmp_path, "def f(x):\n    return x + K\nK = 5\nclass C: pass\n"
    )
    yield module
    import cloudpickle

    sys.modules.pop("a_lost_module", None)
    lost_modules._findable.pop("a_lost_module", None)
    cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES.discard("a_lost_module")


def test_functions_that_cannot_be_imported_travel_by_value(lost_module):
    data = pickling.dumps([lost_module.f, lost_module.C()])
    del sys.modules["a_lost_module"]
    function, _ = pickle.loads(data)
    assert function(1) == 6


def test_importable_functions_travel_by_reference():
    assert len(pickling.dumps(os.path.join)) < 100
    assert pickle.loads(pickling.dumps(textwrap.dedent)) is textwrap.dedent


def test_the_programs_path_leaves_out_the_interpreters_own_entries(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])
    path = pickling.program_path()
    assert path[0] == str(tmp_path)
    assert path[1] == os.getcwd()
    assert not any("site-packages" in entry or "lib-dynload" in entry for entry in path)


def test_packing_keeps_no_reference():
    array = np.zeros(MIB)
    gone = weakref.ref(array)
    _, (fd,) = payload.pack(array, pickling.dumps)
    del array
    assert gone() is None
    os.close(fd)
