"""Queries NVIDIA's driver about GPUs through pynvml. No other module does, and no worker.

    supervisor's loop --question--> one thread --> pynvml --> libnvidia-ml.so.1
                      <--answer----

Calls into a faulty driver may never return. So a separate thread makes them, and the loop waits
only until a deadline. While a query is overdue, further queries fail at once, instead of waiting
behind it; after it returns, queries work again.

pynvml is a large module. It is imported only if the driver's library could be loaded, so that a pod
without GPUs pays only for one failed look-up.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import queue
import threading
import time
from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import Any, Final, TypeVar

from .devices import Device, GpuHealth, Inventory, Reading

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

LIBRARY: Final = "libnvidia-ml.so.1"
#: Seconds for one query. The first may take longer, if the driver must wake every device for it:
#: then the next query finds the list of devices ready.
DEADLINE_S: Final = 5.0
#: Most Xid errors that one query reads; the driver keeps the rest for the next query.
XIDS_AT_ONCE: Final = 100
#: Errors that mean a machine without GPUs: no driver, no library, no permission.
_NO_GPUS: Final = frozenset({9, 12})
#: The driver does not report this for this device, or not to us: not a sign of a fault.
_WILL_NOT_SAY: Final = frozenset({3, 4, 13})


class NvmlError(Exception):
    """The driver could not be queried, or answered with an error; ``code`` is NVML's own."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def __reduce__(self) -> tuple[type[NvmlError], tuple[str, int | None]]:
        return type(self), (self.message, self.code)


class NvmlSilent(NvmlError):
    """The driver did not answer in time."""


def library_is_there() -> bool:
    """Return whether the driver's library is installed, which does not mean there are GPUs."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


class Nvml:
    """Queries from the loop, answered by one thread. All methods belong to the loop."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._driver = _Driver()
        #: The query that the thread is working on, if it is overdue.
        self._overdue: _Question | None = None

    async def inventory(self) -> Inventory:
        """Return the existing devices. Never raises: an empty list comes with its reason."""
        if not library_is_there():
            return Inventory(reason=f"there is no NVIDIA driver here ({LIBRARY} is not found)")
        try:
            return await self._ask(self._driver.inventory)
        except NvmlError as error:
            return Inventory(reason=str(error), ill=error.code not in _NO_GPUS)

    async def read(self, uuids: Iterable[str], *, processes: Container[str] = ()) -> list[Reading]:
        """Read these devices, in this order, and the ``processes`` of some. Never raises."""
        wanted = list(uuids)
        try:
            return await self._ask(
                lambda: [self._driver.read(uuid, processes=uuid in processes) for uuid in wanted]
            )
        except NvmlError as error:
            return [Reading(uuid=uuid, used_bytes=None, failure=str(error)) for uuid in wanted]

    async def health(self, device: str, gpu: str) -> GpuHealth:
        """Return figures of a device for operators; ``gpu`` is the whole GPU. Never raises."""
        try:
            return await self._ask(partial(self._driver.health, device, gpu))
        except NvmlError:
            return GpuHealth()

    async def xids(self, gpus: Iterable[str]) -> list[tuple[str, int]]:
        """Return Xid errors of whole GPUs since the last query, by UUID. Never raises."""
        try:
            return await self._ask(partial(self._driver.xids, list(gpus)))
        except NvmlError:
            return []

    def close(self) -> None:
        """End the thread after its query. A thread that hangs ends with the process."""
        if self._thread is not None:
            self._questions.put(None)
            self._thread = None

    async def _ask(self, ask: Callable[[], _T]) -> _T:
        if self._overdue is not None:
            if not self._overdue.done.is_set():
                seconds = time.monotonic() - self._overdue.asked_at
                raise NvmlSilent(f"the NVIDIA driver has not answered for {seconds:.0f} s")
            self._overdue = None
        question = _Question(ask, asyncio.get_running_loop())
        self._start()
        self._questions.put(question)
        try:
            return await asyncio.wait_for(question.answer, self._deadline_s)
        except asyncio.TimeoutError:
            self._overdue = question
            raise NvmlSilent(
                f"the NVIDIA driver did not answer within {self._deadline_s:g} s"
            ) from None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._answer, name="nvml", daemon=True)
            self._thread.start()

    def _answer(self) -> None:
        while (question := self._questions.get()) is not None:
            question.put()
        self._driver.close()


class _Question:
    """A query for the thread, and the future that awaits it on the loop."""

    def __init__(self, ask: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._ask = ask
        self._loop = loop
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.asked_at = time.monotonic()
        self.done = threading.Event()

    def put(self) -> None:
        """Run the query and deliver the answer; the loop may have timed out, or be closed."""
        try:
            hand_over = partial(self._settle, self._ask())
        except NvmlError as error:
            hand_over = partial(self._fail, error)
        except Exception as error:  # noqa: BLE001 - an unknown driver or pynvml may raise anything
            _log.exception("asking the NVIDIA driver failed")
            hand_over = partial(self._fail, NvmlError(f"{type(error).__name__}: {error}"))
        self.done.set()
        try:
            self._loop.call_soon_threadsafe(hand_over)
        except RuntimeError:
            _log.debug("NVML answered after its loop was closed")

    def _settle(self, answer: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def _fail(self, error: NvmlError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Driver:
    """NVML itself. Only the one thread uses it."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        #: The driver's set of events, and the GPUs whose events are registered in it.
        self._events: Any = None
        self._events_of: set[str] = set()

    def inventory(self) -> Inventory:
        """Return every device that calls can use; for a GPU in MIG mode, its parts."""
        nvml = self._open()
        devices: list[Device] = []
        unreadable: list[str] = []
        for index in range(self._call(nvml.nvmlDeviceGetCount)):
            try:
                devices += self._of_gpu(index)
            except NvmlError as error:
                unreadable.append(f"GPU {index}: {error}")
        return Inventory(
            devices=tuple(devices),
            reason="" if devices else "; ".join(unreadable) or "the NVIDIA driver shows no GPU",
            ill=bool(unreadable) and not devices,
            driver=self._optional(nvml.nvmlSystemGetDriverVersion) or "",
            unreadable=tuple(unreadable),
        )

    def read(self, uuid: str, *, processes: bool) -> Reading:
        """Read a device; an error becomes part of the reading."""
        try:
            nvml = self._open()
            handle = self._handle(uuid)
            used = self._call(nvml.nvmlDeviceGetMemoryInfo, handle).used
            holders = self._processes(handle) if processes else None
        except NvmlError as error:
            if error.code not in _WILL_NOT_SAY:
                # After a reset, or a restart of the driver, all handles are invalid.
                self.close()
            return Reading(uuid=uuid, used_bytes=None, failure=str(error))
        return Reading(uuid=uuid, used_bytes=used, processes=holders)

    def health(self, device: str, gpu: str) -> GpuHealth:
        """Return the driver's health figures; a figure that it refuses is None."""
        nvml = self._open()
        handle, whole = self._handle(device), self._handle(gpu)
        memory = self._optional(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._optional(nvml.nvmlDeviceGetUtilizationRates, whole)
        corrected, uncorrected = (
            self._optional(nvml.nvmlDeviceGetTotalEccErrors, whole, kind, nvml.NVML_VOLATILE_ECC)
            for kind in (
                nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            )
        )
        return GpuHealth(
            used_bytes=None if memory is None else memory.used,
            utilization_percent=None if rates is None else rates.gpu,
            temperature_c=self._optional(
                nvml.nvmlDeviceGetTemperature, whole, nvml.NVML_TEMPERATURE_GPU
            ),
            ecc_corrected=corrected,
            ecc_uncorrected=uncorrected,
        )

    def xids(self, gpus: list[str]) -> list[tuple[str, int]]:
        """Return pending Xid events. The first query only registers for them, so none is older."""
        nvml = self._open()
        if self._events is None:
            self._events = self._call(nvml.nvmlEventSetCreate)
        for uuid in set(gpus) - self._events_of:
            self._events_of.add(uuid)
            # A device without such events is not registered again.
            kind = nvml.nvmlEventTypeXidCriticalError
            self._optional(nvml.nvmlDeviceRegisterEvents, self._handle(uuid), kind, self._events)
        found: list[tuple[str, int]] = []
        for _ in range(XIDS_AT_ONCE):
            event = self._optional(nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                break
            uuid = self._optional(nvml.nvmlDeviceGetUUID, event.device)
            found.append((uuid or "(unknown)", event.eventData))
        return found

    def close(self) -> None:
        """Forget all handles; the next query initialises NVML again."""
        nvml, self._nvml = self._nvml, None
        self._handles.clear()
        events, self._events = self._events, None
        self._events_of.clear()
        if events is not None:
            self._optional(nvml.nvmlEventSetFree, events)
        if nvml is not None:
            self._optional(nvml.nvmlShutdown)

    def _open(self) -> Any:
        if self._nvml is None:
            import pynvml

            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                raise _told(error, "nvmlInit") from None
            self._nvml = pynvml
        return self._nvml

    def _of_gpu(self, index: int) -> list[Device]:
        nvml = self._nvml
        handle = self._call(nvml.nvmlDeviceGetHandleByIndex, index)
        gpu = self._device(handle, index)
        mode = self._optional(nvml.nvmlDeviceGetMigMode, handle)
        if not mode or not mode[0]:
            return [gpu]
        return self._parts(handle, gpu)

    def _parts(self, handle: Any, gpu: Device) -> list[Device]:
        nvml = self._nvml
        parts: list[Device] = []
        for number in range(self._optional(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            # Numbers may have gaps: a removed part leaves its number unused.
            part = self._optional(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if part is not None:
                parts.append(self._device(part, gpu.index, parent=gpu.uuid, part=number))
        return parts

    def _device(
        self, handle: Any, index: int, parent: str | None = None, part: int | None = None
    ) -> Device:
        nvml = self._nvml
        uuid = self._call(nvml.nvmlDeviceGetUUID, handle)
        self._handles[uuid] = handle
        memory = self._optional(nvml.nvmlDeviceGetMemoryInfo, handle)
        return Device(
            uuid=uuid,
            index=index,
            name=self._optional(nvml.nvmlDeviceGetName, handle) or "",
            memory_bytes=None if memory is None else memory.total,
            used_bytes=0 if memory is None else memory.used,
            parent=parent,
            part=part,
        )

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            self._handles[uuid] = self._call(self._nvml.nvmlDeviceGetHandleByUUID, uuid)
        return self._handles[uuid]

    def _processes(self, handle: Any) -> tuple[tuple[int, int | None], ...] | None:
        found = self._optional(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        return None if found is None else tuple((one.pid, one.usedGpuMemory) for one in found)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        import pynvml

        try:
            return function(*args)
        except pynvml.NVMLError as error:
            raise _told(error, function.__name__) from None

    def _optional(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the value, or None where the driver does not report it."""
        try:
            return self._call(function, *args)
        except NvmlError as error:
            _log.debug("%s", error)
            return None


def _told(error: Any, function: str) -> NvmlError:
    return NvmlError(f"{function}: {error}", error.value)
