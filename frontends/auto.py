"""`flashpool serve auto`: chooses the front-end of a container whose image does not name it.

    1. a resource is named: its artifact's manifest says whether it has routes or takes jobs
    2. FLASH_ENDPOINT_TYPE     lb
    3. RUNPOD_RUNTIME_KIND     queue, api, task
    4. RUNPOD_WEBHOOK_GET_JOB  set: a queue; not set: calls over HTTP

A named resource is never served as live calls; each front-end checks that again.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Final

from . import modes
from .apps.contract import AnswerForm
from .modes import ModeError

if TYPE_CHECKING:
    from .settings.table import Settings

__all__ = ["FrontEnd", "choose", "decide"]

_log = logging.getLogger(__name__)

_TYPE: Final = "FLASH_ENDPOINT_TYPE"
_KIND: Final = "RUNPOD_RUNTIME_KIND"
_QUEUE: Final = "RUNPOD_WEBHOOK_GET_JOB"
#: The port of a pod on the platform when PORT is not set.
_POD_PORT: Final = "80"


class FrontEnd(enum.Enum):
    """The front-end to start."""

    QUEUE = "queue"
    BALANCED = "load-balanced"
    TASK = "task"


_OF_ANSWER: Final = {AnswerForm.HTTP: FrontEnd.BALANCED, AnswerForm.JOB: FrontEnd.QUEUE}
_OF_KIND: Final = {
    "queue": FrontEnd.QUEUE,
    "api": FrontEnd.BALANCED,
    "task": FrontEnd.TASK,
}


def decide(answer: AnswerForm | None, environ: Mapping[str, str]) -> FrontEnd:
    """Return the front-end, from the form of the resource's answers (None: no resource is named).

    Raises:
        ModeError: no front-end is for the value of a variable.
    """
    if answer is not None:
        return _OF_ANSWER[answer]
    if kind := environ.get(_TYPE):
        if kind != "lb":
            raise ModeError(f"{_TYPE}={kind!r} is not known: set it to lb, or unset it")
        return FrontEnd.BALANCED
    if kind := environ.get(_KIND):
        if kind not in _OF_KIND:
            raise ModeError(
                f"{_KIND}={kind!r} is not served by this version of flashpool: it serves "
                f"{' and '.join(_OF_KIND)}"
            )
        return _OF_KIND[kind]
    return FrontEnd.QUEUE if environ.get(_QUEUE) else FrontEnd.BALANCED


def choose(settings: Settings, environ: MutableMapping[str, str]) -> FrontEnd:
    """Choose the front-end; if a resource is named, the manifest of its artifact decides.

    A variable that the manifest contradicts is removed, because the front-ends read it as well.

    Raises:
        ModeError: see `decide`.
        AppError: the artifact cannot be served, and no variable names a front-end.
    """
    resource = modes.resource(environ)
    answer = asyncio.run(_answer_of(settings, environ, resource)) if resource else None
    front_end = decide(answer, environ)
    if front_end is FrontEnd.QUEUE and environ.get(_TYPE):
        _log.warning("%s is ignored: the manifest says that %s takes jobs", _TYPE, resource)
        del environ[_TYPE]
    if front_end is FrontEnd.BALANCED and environ.get("RUNPOD_POD_ID") and not environ.get("PORT"):
        environ["PORT"] = _POD_PORT
    return front_end


async def _answer_of(
    settings: Settings, environ: Mapping[str, str], resource: str
) -> AnswerForm | None:
    """Return what the manifest says; None if it cannot be read and a variable decides instead.

    The front-end of that variable then waits for the artifact, and reports the wait to probes.
    """
    from .apps.errors import AppError
    from .apps.preparation import AppSource

    is_told = any(environ.get(name) for name in (_TYPE, _KIND))
    try:
        prepared = await AppSource(settings, environ, resource).prepare(wait=not is_told)
    except AppError as error:
        if not is_told:
            raise
        _log.warning("Of %s, %s or %s decides: %s", resource, _TYPE, _KIND, error)
        return None
    prepared.release()
    return prepared.deployed.answer
