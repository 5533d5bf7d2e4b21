"""Live functions of SDK 2.0: the package that their modules import, and functions with a start
hook.

    source imports runpod            -> the call gets FLASHPOOL_CALLS_RUNPOD, unless it names its own
    server starts in a dev session   -> the environment of such calls is built then
    worker answers NeedsResident     -> the call goes to a resident; so do later ones of that source

Whether a function has a start hook is known only after a worker has run its module. The first call
of a source may therefore run its module twice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from flashpool.envs import Spec
from flashpool.frontends.schema import FunctionRequest
from flashpool.pool.calls import Call, InstanceRequest, Outcome

__all__ = ["NEEDS_RESIDENT", "SdkCalls", "requirements_with_sdk"]

_PACKAGE: Final = "runpod"
#: The worker's answer for a function that has a start hook.
NEEDS_RESIDENT: Final = "NeedsResident"
#: Functions with start hooks that are remembered.
_MOST: Final = 4096


class SdkCalls:
    """The adapter of live functions."""

    def __init__(
        self, requirements: tuple[str, ...], concurrency: int, *, is_awaited: bool = False
    ) -> None:
        """``is_awaited``: calls of this generation are sure to come."""
        #: What their environment is, so that the first one does not wait for it.
        self.ahead = (Spec(requirements=requirements),) if requirements and is_awaited else ()
        self._requirements = requirements
        self._concurrency = concurrency
        #: By the keys of functions that have start hooks.
        self._staying: OrderedDict[Hashable, None] = OrderedDict()

    def adapted(self, request: FunctionRequest, call: Call) -> Call:
        """The call with the SDK in its environment, and its resident where it has one."""
        if _PACKAGE not in call.imports:
            return call
        wanted = requirements_with_sdk(request.dependencies or (), self._requirements)
        if wanted:
            call = replace(call, spec=replace(call.spec or Spec(), requirements=wanted))
        if call.function_key in self._staying:
            self._staying.move_to_end(call.function_key)
            call = replace(call, want=self._resident_of(call))
        return call

    def again(self, call: Call, outcome: Outcome) -> Call | None:
        """The call in a resident, where its function needs one."""
        if outcome.error_type != NEEDS_RESIDENT or outcome.from_user or call.want is not None:
            return None
        self._staying[call.function_key] = None
        if len(self._staying) > _MOST:
            self._staying.popitem(last=False)
        return replace(call, want=self._resident_of(call))

    def _resident_of(self, call: Call) -> InstanceRequest:
        """Return the resident for a source, resource and environment."""
        needs = repr((call.function_key, call.spec, call.gpus, sorted(call.env.items())))
        digest = hashlib.sha256(needs.encode()).hexdigest()
        return InstanceRequest(
            instance=f"{call.label}_{digest[:16]}",
            class_name=call.label,
            code=(call.function_key, call.gpus),
            concurrency=self._concurrency,
        )


def requirements_with_sdk(asked: Iterable[str], sdk: tuple[str, ...]) -> tuple[str, ...]:
    """Return the requirements, and the SDK's if they do not name it."""
    asked = tuple(asked)
    return asked if any(map(_is_sdk, asked)) else (*asked, *sdk)


def _is_sdk(line: str) -> bool:
    try:
        return canonicalize_name(Requirement(line).name) == _PACKAGE
    except InvalidRequirement:
        return False
