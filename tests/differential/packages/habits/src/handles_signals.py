"""Installs signal handlers when it is imported."""

import signal

received: list[int] = []


def note(number, frame):
    received.append(number)


signal.signal(signal.SIGUSR1, note)
signal.signal(signal.SIGALRM, note)
