"""GPUs that exist on paper: a folder that the library made from ``nvml.c`` reads on every call.

    test, or user code of a call  --writes-->  folder  <--reads--  libnvidia-ml.so.1 <-- pynvml

Nothing of pynvml is patched: it loads ``libnvidia-ml.so.1`` by that name, and finds ours
through ``LD_LIBRARY_PATH`` in a new process (`ScriptedNvml.variables`), or because it is
loaded already in this one (`ScriptedNvml.here`).
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LIBRARY: Final = "libnvidia-ml.so.1"
VARIABLE: Final = "SCRIPTED_NVML"
SOURCE: Final = Path(__file__).with_name("nvml.c")
MIB: Final = 1 << 20
GIB: Final = 1 << 30

#: Codes of NVML that tests script.
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
DRIVER_NOT_LOADED: Final = 9
UNKNOWN: Final = 999


def build(folder: Path, compiler: str) -> Path:
    """Compile the library; return its folder."""
    target = folder / LIBRARY
    flags = "-std=gnu11 -Wall -Wextra -Werror -O1 -shared -fPIC".split()
    soname = f"-Wl,-soname,{LIBRARY}"
    subprocess.run([compiler, *flags, soname, "-o", target, SOURCE], check=True)
    return folder


def uuid_of(gpu: int, mig: int | None = None) -> str:
    """Return the UUID of a scripted device, in the form of a real one."""
    kind, number = ("GPU", 0) if mig is None else ("MIG", mig + 1)
    return f"{kind}-{gpu:08x}-5c21-4b7e-9d10-{number:012x}"


class ScriptedNvml:
    """The folder, and methods that change the devices in it."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self._library = library
        for name in ("devices", "processes"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.driver()

    @property
    def variables(self) -> dict[str, str]:
        """Variables that a new process needs to see these devices."""
        return {VARIABLE: str(self.folder), "LD_LIBRARY_PATH": str(self._library)}

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Show the devices to this process until the block ends."""
        ctypes.CDLL(str(self._library / LIBRARY), mode=ctypes.RTLD_GLOBAL)
        os.environ[VARIABLE] = str(self.folder)
        try:
            yield
        finally:
            del os.environ[VARIABLE]

    # The driver.

    def driver(self, *, version: str = "580.95.05", hang: str = "", **fails: int) -> None:
        """Script the driver; ``fails`` maps functions to codes, ``hang`` names one or all."""
        lines = [f"version {version}"]
        lines += [f"hang {hang}"] if hang else []
        lines += [f"fail.{function} {code}" for function, code in fails.items()]
        self._write("driver", lines)

    def no_driver(self) -> None:
        """Remove the driver, as in a container with the library and no GPU."""
        (self.folder / "driver").unlink(missing_ok=True)

    # Devices.

    def gpu(
        self,
        index: int,
        *,
        name: str = "NVIDIA H100 80GB HBM3",
        total: int = 80 * GIB,
        used: int = 4 * MIB,
        lost: bool = False,
        mig: int = 0,
        health: str = "",
        **fails: int,
    ) -> str:
        """Put one there, or change it; its UUID. ``mig``: into how many devices it is cut.

        ``health``: such as ``utilization 93, temperature 71``; what it does not name, the device
        cannot say.
        """
        lines = [f"uuid {uuid_of(index)}", f"name {name}", f"total {total}", f"used {used}"]
        lines += [f"lost {int(lost)}", f"mig {int(mig > 0)}"]
        lines += health.split(", ") if health else []
        lines += [f"fail.{function} {code}" for function, code in fails.items()]
        for part in range(mig):
            self._write(f"devices/{index}.{part}", self._part(index, part, total // mig))
        self._write(f"devices/{index}", lines)
        return uuid_of(index)

    def gpus(self, number: int) -> list[str]:
        """Add this many equal devices; return their UUIDs."""
        return [self.gpu(index) for index in range(number)]

    @staticmethod
    def _part(index: int, part: int, total: int) -> list[str]:
        return [f"uuid {uuid_of(index, part)}", "name MIG", f"total {total}", f"used {MIB}"]

    def xid(self, index: int, *codes: int) -> None:
        """Report Xid errors of a GPU."""
        with (self.folder / "xids").open("a") as file:
            file.write("".join(f"{index} {code}\n" for code in codes))

    # Memory.

    def hold(self, uuid: str, size: int, pid: int | None = None) -> None:
        """Allocate memory for a process while it lives; without a process, for good."""
        with (self.folder / "processes" / uuid).open("a") as file:
            file.write(f"{'stuck' if pid is None else pid} {size}\n")

    def free_stuck(self, uuid: str) -> None:
        """Free the memory that stayed, as after a reset."""
        self._write(f"processes/{uuid}", [])

    def _write(self, name: str, lines: list[str]) -> None:
        # Renamed into place: the library may read at any moment.
        scratch = self.folder / "scratch"
        scratch.write_text("".join(f"{line}\n" for line in lines))
        scratch.replace(self.folder / name)
