"""Starts a thread when it is imported, which answers."""

import queue
import threading

_questions: queue.Queue = queue.Queue()


def _answer() -> None:
    while True:
        value, answers = _questions.get()
        answers.put(value * 2)


THREAD = threading.Thread(target=_answer, daemon=True, name="starts_thread")
THREAD.start()


def double(value: int) -> int:
    answers: queue.Queue = queue.Queue()
    _questions.put((value, answers))
    return answers.get(timeout=5)
