"""The module in which the source of a request runs, and how its functions are pickled.

    source -> __flash_live__, a module of its own; __main__ stays unchanged
              __runpod_live__, if it is a whole module that imports the SDK
    its functions and classes -> cloudpickle, by value: a reader has no such module
    a spawned child -> runs __main__.__file__, which lets it import the module

No file is written for a call that does not spawn a child and does not ask for its file.
"""

from __future__ import annotations

import os
import sys

from .. import call_files
from .source_loader import ModuleSpec, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BY_VALUE",
    "NAME",
    "SDK_NAME",
    "ByValueFinder",
    "MainModule",
    "folder",
    "prepare",
    "write_text",
]

NAME = "__flash_live__"
#: Name of the module in RunPod's own worker for SDK 2.0.
SDK_NAME = "__runpod_live__"
#: Modules that the reader of a pickle does not have, or has with other contents.
BY_VALUE = frozenset({"__main__", "__mp_main__", NAME, SDK_NAME})

#: Names in a source that must be a file when it runs.
_OF_FILES = ("__file__", "getfile", "getsourcefile", "co_filename")

#: Number of folders that belong to earlier calls of this process.
_folders = 0

_CLOUDPICKLE = "cloudpickle.cloudpickle"
_CHILD = "sys.path.insert(0, {folder!r})\n"


def prepare() -> None:
    """Before any call: create ``__main__`` for child processes, and a placeholder for the module.

    Because of the placeholder, a call's module does not add to the number of loaded modules.
    """
    sys.modules["__main__"] = MainModule("__main__")
    sys.modules[NAME] = ModuleType(NAME)
    sys.meta_path.insert(0, ByValueFinder())


class MainModule(ModuleType):
    """The ``__main__`` of workers, which belongs to no program.

    Spawned children of multiprocessing run its file, under another name. So code that is about to
    start a child reads ``__file__``, and the files are written then.
    """

    @property
    def __file__(self) -> str:
        """Write the file with which a child can import the call's modules, and return its path.

        Raises:
            AttributeError: the call came without source and modules.
        """
        own = self.__dict__.get("__file__")
        if own is not None:
            return own  # type: ignore[no-any-return]
        if _source() is None and not call_files.is_made():
            raise AttributeError("module '__main__' has no attribute '__file__'")
        path = f"{folder()}.main.py"
        write_text(path, f"import sys\n\n{_CHILD.format(folder=folder())}")
        return path

    @__file__.setter
    def __file__(self, path: str) -> None:
        self.__dict__["__file__"] = path

    @property
    def __spec__(self) -> ModuleSpec | None:
        """None if children need the file; otherwise a spec, with which they do not ask for it."""
        return None if _source() is not None else self.__dict__.get("__spec__")

    @__spec__.setter
    def __spec__(self, spec: ModuleSpec | None) -> None:
        self.__dict__["__spec__"] = spec


def asks_for_its_file(code: str) -> bool:
    """Return whether the source seems to need a file."""
    return any(word in code for word in _OF_FILES)


def write_source(code: str, name: str = NAME) -> str:
    """Write the module's source to a file, and return its path."""
    path = f"{folder()}/{name}.py"
    write_text(path, code)
    return path


def _live() -> ModuleType | None:
    """Return the module in which the source ran, or the placeholder."""
    return sys.modules.get(SDK_NAME) or sys.modules.get(NAME)


def _source() -> str | None:
    """Return the text of the source that was run, if any."""
    return getattr(getattr(_live(), "__loader__", None), "text", None)


def new_folder() -> str:
    """Create an empty folder for modules; an existing folder belongs to an earlier call."""
    global _folders
    path = f"{call_files.directory()}/modules{_folders or ''}"
    if os.path.isdir(path):
        _folders += 1
    return folder()


def folder() -> str:
    """Return the folder of the call's modules, including the source; create it if necessary."""
    path = f"{call_files.directory()}/modules{_folders or ''}"
    if not os.path.isdir(path):
        os.mkdir(path)
    source, module = _source(), _live()
    if source is not None and module is not None:
        file = f"{path}/{module.__name__}.py"
        if not os.path.exists(file):
            write_text(file, source)
    return path


def write_text(path: str, text: str) -> None:
    """Write a source to a file, in the encoding that it declares, if any."""
    data = text.encode() if text.isascii() else _encoded(text)
    with open(path, "wb") as file:
        file.write(data)


def _encoded(text: str) -> bytes:
    import io
    import tokenize

    head = text.encode("utf-8")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(head).readline)
        return text.encode("utf-8" if encoding == "utf-8-sig" else encoding)
    except (SyntaxError, UnicodeError):
        # The declared encoding is wrong; without the declaration, Python reads the file correctly.
        lines = head.split(b"\n", 2)
        lines[:2] = [line.replace(b"coding", b"c-ding") for line in lines[:2]]
        return b"\n".join(lines)


class ByValueFinder:
    """Registers the module with each copy of cloudpickle, to be pickled by value.

    Packages such as joblib, pyspark and ray have their own copies.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> ModuleSpec | None:
        """Part of the import protocol (``sys.meta_path``)."""
        if not name.endswith(_CLOUDPICKLE):
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, None)) is not None:
                break
        else:
            return None
        loader = spec.loader
        if loader is not None and hasattr(loader, "__dict__"):
            run = loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                del loader.exec_module
                run(module)
                register(module)

            # Set on this loader only, so that its class stays unchanged.
            loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register(cloudpickle: ModuleType) -> None:
    """Make a copy of cloudpickle pickle the source's functions and classes by value."""
    register_by_value = getattr(cloudpickle, "register_pickle_by_value", None)
    module = _live()
    if register_by_value is not None and module is not None:
        register_by_value(module)
