"""What belongs to one process: descriptors, locks, threads, signals, limits, its end."""

from differential.programs import program, program_text


@program(group="own")
def files_beside_those_of_a_package(scratch):
    """The descriptors of a package's log and database are not those of a file opened here."""
    import os

    import keeps_records

    files = [open(os.path.join(scratch, f"part{number}.csv"), "w") for number in range(12)]
    for number, file in enumerate(files):
        file.write(f"part {number}\n")
        file.flush()
    keeps_records.log.info("a line of the package")
    for file in files:
        file.close()
    return "written"


@program(group="own")
def log_file_of_a_package():
    import os
    import uuid

    import keeps_records

    tag = f"tag {uuid.uuid4()} {os.getpid()}"
    keeps_records.log.info(tag)
    with open(keeps_records.LOG_FILE) as file:
        return sum(line.strip() == tag for line in file)


@program(group="own")
def database_of_a_package():
    import uuid

    import keeps_records

    tag = str(uuid.uuid4())
    keeps_records.DATABASE.execute("insert into records values (?)", (tag,))
    query = "select count(*) from records where tag = ?"
    return keeps_records.DATABASE.execute(query, (tag,)).fetchone()[0]


@program(group="own")
def lock_of_a_package_kept():
    import keeps_counter

    return keeps_counter.LOCK.acquire(timeout=1)


@program(group="own")
def shared_memory_of_a_package():
    import keeps_counter

    return keeps_counter.count()


@program(group="own")
def sockets_of_a_package():
    import uuid

    import keeps_descriptors

    text = str(uuid.uuid4())
    return keeps_descriptors.through_sockets(text) == text


@program(group="own")
def open_file_of_a_package():
    import uuid

    import keeps_descriptors

    text = str(uuid.uuid4())
    return keeps_descriptors.through_file(text) == text


@program(group="own")
def event_loop_of_a_package():
    import keeps_loop

    return keeps_loop.LOOP.run_until_complete(keeps_loop.answer())


@program(group="own", fresh=("path",))
def temporary_directory_of_a_package():
    import os

    import keeps_directory

    with open(os.path.join(keeps_directory.DIRECTORY, "mine"), "w") as file:
        file.write("x")
    return {"path": keeps_directory.DIRECTORY, "files": os.listdir(keeps_directory.DIRECTORY)}


@program(group="own")
def thread_of_a_package():
    import starts_thread

    return [starts_thread.double(21), starts_thread.THREAD.is_alive()]


@program(group="own")
def context_set_by_a_package():
    import threading

    import keeps_values

    return [
        keeps_values.REQUEST.get(),
        keeps_values.LOCAL.value,
        keeps_values.MAIN_THREAD is threading.main_thread(),
    ]


@program(group="own")
def signal_handlers_of_a_package():
    import os
    import signal

    import handles_signals

    os.kill(os.getpid(), signal.SIGUSR1)
    return [handles_signals.received, signal.getsignal(signal.SIGALRM).__name__]


@program(group="base")
def signal_handlers_left_alone():
    import signal

    names = "SIGINT SIGHUP SIGTERM SIGALRM SIGUSR1 SIGPIPE SIGCHLD".split()
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in names}
    blocked = sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    return [
        {
            name: handler.__name__ if callable(handler) else int(handler)
            for name, handler in handlers.items()
        },
        blocked,
    ]


@program(group="base")
def alarm_in_the_function():
    import signal

    class Rang(Exception):
        pass

    def ring(number, frame):
        raise Rang

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        signal.pause()
    except Rang:
        return "rang"
    return "did not ring"


@program(group="own")
def hook_for_forks_of_a_package():
    import os

    import hooks_forks

    before = hooks_forks.forks_in_child
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, str(hooks_forks.forks_in_child).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return [before, os.read(reader, 10).decode(), hooks_forks.IMPORTED_IN == os.getpid()]


@program(group="own")
def limits_changed_by_a_package():
    import decimal
    import gc
    import os
    import socket
    import sys

    import changes_limits

    return [
        changes_limits.__name__,
        sys.getrecursionlimit(),
        round(sys.getswitchinterval(), 3),
        str(decimal.Decimal(1) / 3),
        gc.isenabled(),
        socket.getdefaulttimeout(),
        os.umask(0),
    ]


@program(group="base")
def limits_left_alone():
    import decimal
    import gc
    import os
    import socket
    import sys

    return [
        sys.getrecursionlimit(),
        round(sys.getswitchinterval(), 3),
        str(decimal.Decimal(1) / 3),
        gc.isenabled(),
        gc.get_threshold(),
        socket.getdefaulttimeout(),
        os.umask(0),
    ]


@program(group="base")
def recursion_limit_changed():
    import sys

    def depth(number):
        return 0 if not number else 1 + depth(number - 1)

    sys.setrecursionlimit(6000)
    deep = depth(5000)
    sys.setrecursionlimit(500)
    try:
        depth(1000)
    except RecursionError:
        return deep
    return "no error"


@program(group="own")
def locale_and_zone_set_by_a_package():
    import locale
    import time

    import sets_locale

    return [sets_locale.__name__, locale.setlocale(locale.LC_ALL), time.tzname[0]]


@program(group="base")
def locale_left_alone():
    import locale
    import sys
    import time

    return [
        locale.setlocale(locale.LC_ALL),
        locale.getpreferredencoding(),
        sys.stdout.encoding,
        sys.getfilesystemencoding(),
        time.tzname[0],
    ]


@program(group="base")
def locale_set_in_the_function():
    import locale

    locale.setlocale(locale.LC_ALL, "")
    return [
        f"{1234567.891:n}",
        locale.localeconv()["decimal_point"],
        locale.setlocale(locale.LC_ALL),
    ]


@program(group="base")
def arguments_of_the_program():
    import argparse
    import sys

    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=3)
    return [parser.parse_args().size, sys.argv[1:], len(sys.argv)]


@program(group="base")
def standard_input():
    import sys

    return [sys.stdin.read(), sys.stdin.isatty(), sys.stdout.isatty()]


@program(group="base")
def output_of_all_kinds():
    import ctypes
    import os
    import subprocess
    import sys

    print("of Python", "ünïcode", sep=" / ")
    print("no newline at its end", end="")
    sys.stdout.flush()
    os.write(1, b"\nof the descriptor\n")
    print("an error line", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo of a child; echo of its errors >&2"], check=True)
    ctypes.CDLL(None).puts(b"of C")
    return "printed"


@program(group="base", fresh=("pid",))
def process_of_its_own():
    import os
    import threading

    return {
        "pid": os.getpid(),
        "threads": threading.active_count(),
        "main": threading.current_thread() is threading.main_thread(),
        "children": len(open(f"/proc/self/task/{os.getpid()}/children").read().split()),
    }


@program(group="base")
def descriptors_free():
    """A file that is opened gets a low number, and nothing is open beside the standard ones."""
    import os

    low = [number for number in range(100) if os.path.exists(f"/proc/self/fd/{number}")]
    # One of them was the lookup's own.
    with open("/dev/null") as file:
        return [low, file.fileno()]


program_text(
    "file_of_the_source_left_open",
    """
    LINES = []


    def run(scratch):
        import gzip
        import os

        text = open(os.path.join(scratch, "text.txt"), "w")
        packed = gzip.GzipFile(os.path.join(scratch, "packed.gz"), "wb", mtime=0)
        text.write("a line" + chr(10))
        packed.write(b"a line")
        LINES.append([text, packed])
        return "written"
    """,
    group="base",
    at_exit=True,
    forms=("cold", "warm", "many", "parallel"),
)


@program(group="base", at_exit=True, forms=("cold", "warm", "many", "parallel"))
def hook_for_the_end(scratch):
    import atexit
    import os

    def leave():
        with open(os.path.join(scratch, "left"), "w") as file:
            file.write("in order")

    atexit.register(leave)
    return "registered"


@program(group="base", at_exit=True, forms=("cold", "warm", "many", "parallel"))
def thread_that_outlives_the_function(scratch):
    import os
    import threading
    import time

    def work():
        time.sleep(0.2)
        with open(os.path.join(scratch, "done"), "w") as file:
            file.write("by a thread")

    threading.Thread(target=work).start()
    return "started"
