"""What a function arranges before it imports: variables, directories, paths, stubs, filters."""

from differential.programs import program, program_text


@program(group="own")
def variable_set_before_the_import():
    import os

    os.environ["READS_VARIABLE_MODE"] = "loud"
    os.environ["READS_VARIABLE_VERBOSE"] = ""
    import reads_variable

    return [reads_variable.MODE, reads_variable.VERBOSE]


@program(group="own")
def variable_left_alone():
    import reads_variable

    return [reads_variable.MODE, reads_variable.VERBOSE]


@program(group="own", env={"READS_VARIABLE_MODE": "of the request"})
def variable_of_the_request():
    import reads_variable

    return [reads_variable.MODE, reads_variable.VERBOSE]


@program(group="own")
def variable_changed_and_module_reloaded():
    import importlib
    import os

    import reads_variable

    before = reads_variable.MODE
    os.environ["READS_VARIABLE_MODE"] = "again"
    importlib.reload(reads_variable)
    return [before, reads_variable.MODE]


@program(group="own")
def import_refused_without_a_variable():
    import needs_variable

    return needs_variable.VALUE


@program(group="own")
def import_possible_with_a_variable():
    import os

    try:
        import needs_variable

        first = needs_variable.VALUE
    except ImportError as error:
        first = str(error)
    os.environ["NEEDS_VARIABLE"] = "here"
    import needs_variable

    return [first, needs_variable.VALUE]


@program(group="own")
def variable_set_by_a_package():
    import os
    import subprocess
    import sys

    before = os.environ.get("SETS_VARIABLE")
    import sets_variable

    code = "import os; print(os.environ.get('SETS_VARIABLE'))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [before, sets_variable.os.environ.get("SETS_VARIABLE"), child.stdout.strip()]


@program(group="own")
def variable_of_a_package_not_imported():
    import os

    return os.environ.get("SETS_VARIABLE")


@program(group="base")
def all_variables():
    """No more and no fewer, so that nothing of the server's own shows."""
    import os

    return sorted(os.environ)


@program(group="base", env={"OPENBLAS_NUM_THREADS": "1"})
def threads_of_native_code_by_the_request():
    import os

    import numpy

    numpy.ones((400, 400)) @ numpy.ones((400, 400))
    return len(os.listdir("/proc/self/task"))


@program(group="base")
def threads_of_native_code():
    import os

    import numpy

    numpy.ones((400, 400)) @ numpy.ones((400, 400))
    return len(os.listdir("/proc/self/task"))


@program(group="base")
def time_zone_set_in_the_function():
    import os
    import time

    before = time.localtime(0)[:5]
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    return [before, time.localtime(0)[:5], time.tzname]


@program(group="base", env={"TZ": "Asia/Tokyo"})
def time_zone_of_the_request():
    import datetime
    import time

    return [time.localtime(0)[:5], str(datetime.datetime.fromtimestamp(0)), time.tzname]


@program(group="base")
def time_zone_left_alone():
    import datetime
    import time
    import zoneinfo

    moment = datetime.datetime.fromtimestamp(0, zoneinfo.ZoneInfo("Europe/Paris"))
    return [time.localtime(0)[:5], time.timezone, str(moment)]


@program(group="own")
def directory_changed_before_the_import(scratch):
    import os

    with open(os.path.join(scratch, "reads_directory.ini"), "w") as file:
        file.write("here")
    os.chdir(scratch)
    import reads_directory

    return [reads_directory.HERE, reads_directory.SETTINGS]


@program(group="own")
def directory_left_alone():
    import os

    import reads_directory

    return [reads_directory.HERE == os.getcwd(), reads_directory.SETTINGS]


@program(group="own")
def module_in_front_by_sys_path(scratch):
    import os
    import sys

    with open(os.path.join(scratch, "shadowed.py"), "w") as file:
        file.write("ORIGIN = 'scratch'\n")
    sys.path.insert(0, scratch)
    import shadowed

    return shadowed.ORIGIN


@program(group="own")
def module_as_installed():
    import shadowed

    return shadowed.ORIGIN


program_text(
    "module_in_front_by_the_request",
    """
    def run():
        import shadowed

        return shadowed.ORIGIN
    """,
    group="own",
    modules={"shadowed.py": "ORIGIN = 'shipped'\n"},
)

program_text(
    "package_in_front_by_the_request",
    """
    def run():
        import numpy

        return [numpy.__version__, hasattr(numpy, "array")]
    """,
    group="base",
    modules={"numpy/__init__.py": "__version__ = 'shipped'\n"},
)


@program(group="own")
def stub_in_sys_modules():
    import sys
    import types

    sys.modules["shadowed"] = stub = types.ModuleType("shadowed")
    stub.ORIGIN = "stub"
    import shadowed

    return shadowed.ORIGIN


@program(group="own")
def module_forbidden_in_sys_modules():
    import sys

    sys.modules["numpy"] = None
    import wants_numpy

    return wants_numpy.HAS_NUMPY


@program(group="own")
def optional_module_there():
    import wants_numpy

    return wants_numpy.HAS_NUMPY


@program(group="own")
def warning_at_import():
    import warns

    return warns.__name__


@program(group="own")
def warning_at_import_recorded():
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import warns

    return [warns.__name__, [str(warning.message) for warning in caught]]


@program(group="own")
def warning_at_import_as_an_error():
    import warnings

    warnings.simplefilter("error")
    import warns

    return warns.__name__


@program(group="own")
def warning_ignored_before_the_import():
    import warnings

    warnings.simplefilter("ignore")
    import warns

    return warns.__name__


@program(group="base")
def warning_once():
    import warnings

    warnings.simplefilter("once")
    for _ in range(3):
        warnings.warn("once is enough", stacklevel=1)
    return "warned"


@program(group="base")
def warning_by_default():
    import warnings

    for _ in range(3):
        warnings.warn("of a loop", stacklevel=1)
    warnings.warn("errors by filter, of a package that is not imported", stacklevel=1)
    return "warned"


@program(group="own")
def warning_silenced_by_a_package():
    import warnings

    import filters_warnings

    warnings.warn("nobody sees this", stacklevel=1)
    try:
        warnings.warn("errors by filter", stacklevel=1)
    except UserWarning as error:
        return [filters_warnings.__name__, str(error)]
    return "no error"


@program(group="base")
def warning_filters():
    import warnings

    return [str(entry[2].__name__) + " " + entry[0] for entry in warnings.filters]


@program(group="own")
def reload_of_a_module():
    import importlib

    import counts

    counts.count()
    importlib.reload(counts)
    return [counts.calls, counts.count()]


@program(group="own")
def import_anew_after_removal():
    import sys

    import announces

    first = announces
    del sys.modules["announces"]
    import announces

    return announces is first


@program(group="own")
def import_for_a_while():
    import sys
    from unittest import mock

    with mock.patch.dict(sys.modules):
        import counts

        counts.count()
        inside = "counts" in sys.modules
    after = "counts" in sys.modules
    import counts

    return [inside, after, counts.calls]
