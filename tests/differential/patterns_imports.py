"""What importing is seen to do: names, parts, finders, output, and what else is loaded."""

from differential.programs import program, program_text


@program(group="base")
def modules_not_imported():
    import sys

    names = "numpy numpy.linalg pandas torch counts shadowed wave xml.dom.minidom".split()
    return [name for name in names if name in sys.modules]


@program(group="own")
def modules_loaded_beside_the_standard_library():
    import os.path
    import sys

    import counts

    # What a call's own machinery needs is there as well.
    ours = {"flashpool", "_flashpool", "cloudpickle", "tblib"}
    loaded = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ours or top.startswith("__"):
            continue
        if os.path.basename(file) != "main.py" and not file.startswith("flash:"):
            loaded.add(top)
    return [counts.__name__, sorted(name for name in loaded if not name.startswith("_"))]


@program(group="own")
def part_of_a_package_not_imported():
    import lazy_parts

    return [hasattr(lazy_parts, "part"), "part" in dir(lazy_parts)]


@program(group="own")
def part_of_a_package_imported():
    import lazy_parts
    import lazy_parts.part

    return [lazy_parts.part.VALUE, "part" in vars(lazy_parts)]


@program(group="own")
def part_of_a_package_by_from():
    import sys

    from lazy_parts import part

    return [part.VALUE, "lazy_parts" in sys.modules, part.__spec__.name, part.__package__]


@program(group="base")
def part_of_the_standard_library_not_imported():
    import xml

    return hasattr(xml, "dom")


@program(group="base")
def part_of_the_standard_library_imported():
    import xml.dom.minidom

    return xml.dom.minidom.parseString("<a>b</a>").documentElement.toxml()


@program(group="own")
def specs_of_modules():
    import importlib.util
    import sys

    found = importlib.util.find_spec("counts")
    there = "counts" in sys.modules
    import counts

    return [found.name, there, counts.__spec__.name, counts.__file__ == found.origin]


@program(group="base")
def imports_by_name():
    import importlib

    fft = importlib.import_module("numpy.fft")
    linalg = __import__("numpy.linalg", fromlist=["norm"])
    return [abs(fft.fft([1, 0, 0])).tolist(), float(linalg.norm([3.0, 4.0]))]


@program(group="base")
def versions_of_distributions():
    import importlib.metadata

    import numpy

    return importlib.metadata.version("numpy") == numpy.__version__


@program(group="own")
def finder_of_the_function():
    import sys

    seen = []

    class Finder:
        def find_spec(self, name, path=None, target=None):
            seen.append(name)

    sys.meta_path.insert(0, Finder())
    import counts
    import lazy_parts.part

    return [counts.calls, lazy_parts.part.VALUE, [n for n in seen if n[:4] in ("coun", "lazy")]]


@program(group="own")
def import_function_replaced():
    import builtins

    seen = []
    real = builtins.__import__

    def watched(name, *args, **kwargs):
        seen.append(name)
        return real(name, *args, **kwargs)

    builtins.__import__ = watched
    import counts
    import draws

    builtins.__import__ = real
    ours = [name for name in seen if name in ("counts", "draws")]
    return [counts.calls, draws.__name__, ours]


@program(group="own")
def output_at_import():
    import announces

    return announces.__name__


@program(group="own")
def output_at_import_caught():
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        import announces
    return [announces.__name__, out.getvalue()]


@program(group="own")
def output_at_import_before_that_of_the_function():
    print("begins")
    import announces

    print("ends")
    return announces.__name__


@program(group="own")
def log_at_import():
    import logs

    return logs.__name__


@program(group="own")
def logging_configured_by_a_package():
    import logging

    import configures_logging

    logging.getLogger("mine").info("of the function")
    return [configures_logging.__name__, logging.getLogger().level]


@program(group="own")
def logging_configured_before_the_package():
    import logging

    logging.basicConfig(level=logging.WARNING, format="mine %(message)s")
    import configures_logging

    logging.getLogger("mine").warning("of the function")
    return [configures_logging.__name__, logging.getLogger().level]


@program(group="base")
def logging_of_the_function():
    import logging
    import sys

    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s", stream=sys.stdout)
    logging.debug("in detail")
    logging.getLogger("part").error("went wrong")
    return logging.getLogger().level


@program(group="own")
def path_and_finders_of_a_package_not_imported():
    import sys

    names = [type(finder).__module__ for finder in sys.meta_path]
    return ["extends_path" in names, "/extends-path/does-not-exist" in sys.path]


@program(group="own")
def path_and_finders_of_a_package():
    import sys

    import extends_path

    names = [type(finder).__module__ for finder in sys.meta_path]
    return [extends_path.PLACE in sys.path, names.count("extends_path")]


@program(group="own")
def standard_library_patched_by_a_package():
    import builtins
    import json

    import patches_stdlib

    return [json.dumps([1]), hasattr(builtins, "patched"), patches_stdlib.__name__]


@program(group="base")
def standard_library_as_it_is():
    import builtins
    import json
    import sys
    import time

    return [
        json.dumps([1]),
        hasattr(builtins, "patched"),
        hasattr(time, "patched"),
        sys.excepthook is sys.__excepthook__,
    ]


@program(group="own")
def globals_of_a_module():
    import counts

    counts.seen.append("x")
    counts.Settings.options["x"] = 1
    counts.cached(3)
    info = counts.cached.cache_info()
    return [counts.count(), counts.seen, counts.Settings.options, info.misses, info.hits]


@program(group="own")
def registry_of_classes():
    import registers

    class Mine(registers.Plugin):
        pass

    return [sorted(registers.registry), Mine.__name__]


program_text(
    "globals_of_a_shipped_module",
    """
    import shipped_state


    def run():
        shipped_state.CALLS.append(1)
        return [len(shipped_state.CALLS), shipped_state.__name__]
    """,
    group="base",
    modules={"shipped_state.py": "CALLS = []\n"},
)

program_text(
    "globals_of_the_source",
    """
    import functools

    calls = []


    @functools.cache
    def slow(value):
        calls.append(value)
        return value * 2


    def run():
        return [slow(2), slow(2), calls]
    """,
    group="base",
)

program_text(
    "parts_of_a_shipped_package",
    """
    def run():
        import importlib
        import inspect
        import pkgutil

        import shipped_package

        names = [found.name for found in pkgutil.iter_modules(shipped_package.__path__)]
        first = importlib.import_module(f"shipped_package.{names[0]}") if names else None
        return [names, first and inspect.getsource(first.double), first and first.double(2)]
    """,
    group="base",
    modules={
        "shipped_package/__init__.py": "",
        "shipped_package/first.py": "def double(value):\n    return value * 2\n",
        "shipped_package/second.py": "",
    },
)
