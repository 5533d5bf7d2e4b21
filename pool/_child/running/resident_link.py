"""The channel of a resident, shared by all calls that run in it; and changes reported so far."""

from __future__ import annotations

import os
import sys

from .. import processes, wire
from ..renewal import prepared
from .outcome import answer_damaged, changes, installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..channel import Channel
    from .outcome import Outcome


class ResidentLink:
    """The channel to the supervisor, and the modules and changes reported so far."""

    def __init__(self, channel: Channel, env: dict[str, str] | None) -> None:
        import threading

        self.channel = channel
        self.pid = os.getpid()
        self.env = env
        self.known = set(sys.modules)
        #: Changed surroundings that imports read, as reported last.
        self.changed: list[str] = []
        #: By call number: functions that add credit to running streams.
        self.streams: dict[int, Callable[[int], None]] = {}
        #: Held while a frame is sent, because threads of user code may print meanwhile.
        self.sending = threading.Lock()
        #: Whether user code forked this process, which must not touch the channel.
        self.forked = False
        os.register_at_fork(after_in_child=self.on_forked)

    def on_forked(self) -> None:
        self.forked = True

    def send(self, kind: int, number: bytes, outcome: Outcome, run_s: float) -> None:
        """Send the outcome of a call, or of loading."""
        form, body, fds, more = outcome
        try:
            rss_kb = processes.peak_rss_kb()
            ok = "error_type" not in more
            if len(sys.modules) > len(self.known):
                more = {**more, "modules": self.new_modules(), **self.changes(self.env or {})}
            elif prepared.held is not None:
                more = {**more, **self.changes()}
            meta = wire.ResultMeta(ok=ok, form=form, run_s=run_s, rss_kb=rss_kb, more=more)
            self.send_frame(kind, number + meta.pack(), body, fds)
        except OSError:
            raise
        except BaseException as error:
            answer_damaged(self.channel, outcome, run_s, error, kind, number)

    def send_frame(self, kind: int, meta: bytes, body: bytes, fds: list[int]) -> None:
        if self.forked:
            # User code forked, and this is the child: only the original process may answer.
            os._exit(0)
        with self.sending:
            self.channel.send(kind, meta, body, fds)

    def take_credit(self, frame: wire.Frame) -> None:
        """Add the credit of a CREDIT frame to its stream."""
        if frame.kind != wire.CREDIT:
            return
        number, meta = wire.split_number(frame.meta)
        if number in self.streams:
            self.streams[number](wire.CREDIT_META.unpack(meta)[0])

    def changes(self, env: dict[str, str] | None = None) -> dict[str, list[str]]:
        """Return changes that were not reported before."""
        found = changes(env, imported=env is not None)
        changed = found.pop("changed", [])
        if changed != self.changed:
            self.changed = found["changed"] = changed
        return found

    def new_modules(self) -> list[str]:
        new = [name for name in list(sys.modules) if name not in self.known]
        self.known.update(new)
        return installed(new) if new else []
