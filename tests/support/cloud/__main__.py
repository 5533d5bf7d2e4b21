"""The stand-in as a process: `cd tests && python -m support.cloud [--port N] [--worker COMMAND]`.

Prints, as lines for a shell, what leads a client and one worker to it, and serves until it is
interrupted. With a command, each endpoint that a client provisions gets a worker.
"""

import argparse
import os
import shlex
import signal

from support.cloud import ENDPOINT, Platform


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m support.cloud", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--worker", type=shlex.split, help="the command of a worker")
    parser.add_argument("--poll-s", type=float, default=20.0, help="how long job-take waits")
    given = parser.parse_args()
    # Not sigwait: workers would inherit the blocked signals.
    told, tell = os.pipe()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: os.write(tell, b"."))
    with Platform(port=given.port, worker=given.worker, poll_s=given.poll_s) as platform:
        print("# a client of it; its calls go to the endpoints that it provisions")
        _show(platform.client_env())
        print(f"# a worker of the endpoint {ENDPOINT}")
        _show(platform.worker_env())
        print("# ready", flush=True)
        os.read(told, 1)


def _show(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
