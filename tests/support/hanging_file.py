"""A FUSE volume that answers nothing about its one file: who asks waits in the kernel (state D).

    process --stat--> kernel --request--> `HangingFile`, which keeps it --release--> "no such file"

The kernel's protocol (linux/fuse.h) is spoken here directly, so that no library is needed.
"""

import ctypes
import os
import struct
import threading
from pathlib import Path
from typing import Final

from support.wants import missing

_REQUEST: Final = struct.Struct("<IIQQIIII")
_ANSWER: Final = struct.Struct("<IiQ")
#: Operations, and errors in answers.
_LOOKUP, _FORGET, _GETATTR, _INIT, _INTERRUPT = 1, 2, 3, 26, 36
_NO_SUCH_FILE, _NO_SUCH_OPERATION = 2, 38
#: The answer to INIT: version 7.31, and limits.
_INIT_ANSWER: Final = struct.pack("<IIIIHHIIHH8I", 7, 31, 65536, 0, 0, 0, 65536, 0, 0, 0, *[0] * 8)
#: Attributes of the volume's directory, with no caching time.
_DIRECTORY: Final = struct.pack("<QII6Q10I", 0, 0, 0, 1, *[0] * 8, 0o40777, 1, *[0] * 3, 4096, 0)
_DETACH: Final = 2


class HangingFile:
    """The volume, mounted while this object is open."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self._place = str(place)
        #: The path whose look-ups hang.
        self.file = str(place / "file")
        self._lock = threading.Lock()
        self._kept: list[int] = []
        self._released = False
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise missing("FUSE", f"/dev/fuse: {error.strerror}") from None
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if self._libc.mount(b"fuse", self._place.encode(), b"fuse", 0, options.encode()) != 0:
            os.close(self._device)
            raise missing("FUSE", f"it cannot be mounted: {os.strerror(ctypes.get_errno())}")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return len(self._kept)

    def release(self) -> None:
        """Answer all waiting requests, and all later ones."""
        with self._lock:
            self._released = True
            for number in self._kept:
                self._answer(number, error=_NO_SUCH_FILE)
            self._kept.clear()

    def close(self) -> None:
        """Unmount the volume."""
        self.release()
        self._libc.umount2(self._place.encode(), _DETACH)
        self._thread.join(30)
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                data = os.read(self._device, 1 << 20)
            except OSError:
                return  # the volume is unmounted
            _, operation, number, *_ = _REQUEST.unpack_from(data)
            if operation == _LOOKUP:
                self._keep(number)
            elif operation == _INIT:
                self._answer(number, _INIT_ANSWER)
            elif operation == _GETATTR:
                self._answer(number, _DIRECTORY)
            elif operation not in (_FORGET, _INTERRUPT):
                self._answer(number, error=_NO_SUCH_OPERATION)

    def _keep(self, number: int) -> None:
        with self._lock:
            if self._released:
                self._answer(number, error=_NO_SUCH_FILE)
            else:
                self._kept.append(number)

    def _answer(self, number: int, data: bytes = b"", error: int = 0) -> None:
        os.write(self._device, _ANSWER.pack(_ANSWER.size + len(data), -error, number) + data)
