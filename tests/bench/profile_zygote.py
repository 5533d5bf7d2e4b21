"""``python -I -S profile_zygote.py CHILD_FOLDER CALLS``: a real zygote that measures its workers.

Started by `profile_call`, which says on standard input (JSON) how to start and what to
call. It prepares itself as a zygote does, with the product's own code, and then forks
workers one at a time that live their life up to a point and leave there: a function of
the product is replaced, before the fork, by one that exits. What workers that get one
point further cost more is the price of the stage between.

Prints JSON: ``zygote``, CPU microseconds of a fork in the zygote itself, and ``stages``,
of each its name and CPU microseconds and page faults of a worker that lives to its end.
All are medians. It imports nothing that a zygote does not: all it holds, its workers pay for.
"""

import json
import os
import socket
import sys
import time
from binascii import a2b_base64

package = type(sys)("_flashpool")
package.__path__ = [sys.argv[1]]
sys.modules["_flashpool"] = package

from _flashpool import wire  # noqa: E402
from _flashpool.fork_server import zygote  # noqa: E402

CALLS = int(sys.argv[2])


def leave(*_args, **_kwargs):
    os._exit(0)


def median(values):
    return sorted(values)[len(values) // 2]


class Profiled(zygote.Zygote):  # type: ignore[misc]
    """A zygote that measures in its first turn, then ends."""

    def __init__(self, near, far, order):
        self.near = near
        self.order = order
        super().__init__(far, os.pidfd_open(os.getpid()), order["start"])

    def turn(self):
        found = []
        worker = self.worker
        pickled = self.order["pickled"]
        if not pickled:
            # As after a few calls of this source.
            request = json.loads(a2b_base64(self.order["body"]))
            self.compile_ahead(request["function_name"], json.dumps(request["function_code"]))
        decoder = worker.payload if pickled else worker.flash
        stages = [
            ("fork and exit", zygote.worker_start, "live"),
            ("set itself apart (session, descriptors)", self, "work"),
            *([("receive the call", worker, "renew")] if zygote.prepared.held else []),
            (
                "renew what modules hold" if zygote.prepared.held else "receive the call",
                decoder,
                "load_call",
            ),
            *(
                [("load function and arguments (unpickle)", worker.invoke, "run")]
                if pickled
                else [
                    ("parse the request (JSON)", self.user_code, "run_source"),
                    ("make a module, find the source compiled", self.user_code, "_run"),
                    ("run it, find the function, decode arguments", worker.invoke, "run"),
                ]
            ),
            ("invoke the function", decoder, "dump_result"),
            ("dump the result", worker.exit_needs, "any_left"),
            ("look for what it left to be done at its exit", worker, "_answer"),
            ("compare the process with how it was", zygote.processes, "peak_rss_kb"),
            ("answer", None, ""),
        ]
        own = []
        for name, module, attribute in stages:
            cpu, faults = self.until(module, attribute, own)
            found.append([name, cpu, faults])
        print(json.dumps({"zygote": median(own), "stages": found}), flush=True)
        return False

    def until(self, module, attribute, own):
        """Median CPU microseconds and page faults of workers that leave at a function."""
        original = module and getattr(module, attribute)
        if module:
            setattr(module, attribute, leave)
        try:
            usages = [self.one(own) for _ in range(CALLS)]
        finally:
            if module:
                setattr(module, attribute, original)
        warm = usages[CALLS // 5 :]
        return (
            median([(one.ru_utime + one.ru_stime) * 1e6 for one in warm]),
            median([one.ru_minflt for one in warm]),
        )

    def one(self, own):
        link = self.new_link()
        body = a2b_base64(self.order["body"])
        meta = wire.pack_call_meta(
            pickled=self.order["pickled"], stream=False, result_limit=10 << 20, env={}
        )
        link.near.sendall(wire.head(wire.CALL, meta, len(body), 0) + body)
        before = time.process_time()
        pid = self.fork_one(link)
        used = time.process_time() - before
        own.append(used * 1e6)
        _, status, usage = os.wait4(pid, 0)
        printed = os.read(link.output, 65536) if status else b""
        link.close_far()
        link.close_near()
        self.reaper.free_marks.append(link.mark)
        assert status == 0, printed.decode(errors="replace")
        return usage


near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
zygote.processes.become_subreaper()
Profiled(near, far, json.load(sys.stdin)).run()
