"""Live functions of SDK 2.0: adds the package that their modules import, and runs start hooks.

    source imports runpod            -> the call gets FLASHPOOL_CALLS_RUNPOD, unless it names runpod
    server starts in a dev session   -> the environment of such calls is built at once
    source has a line @NAME.init     -> the call goes to a resident, which runs the hook
    worker answers NeedsResident     -> the call goes to a resident; so do later ones of that source
    resident answers NeedsProcess    -> the call goes to a process of its own; so do later ones

Whether a function has a start hook is known only when a worker has run its module. The text of the
source decides only where the first call is tried, so that the call usually runs its module once;
what the worker finds decides.
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

__all__ = ["NEEDS_PROCESS", "NEEDS_RESIDENT", "SdkCalls", "requirements_with_sdk"]

_PACKAGE: Final = "runpod"
#: Answer of a worker if the function has a start hook; of a resident if the function has none.
NEEDS_RESIDENT: Final = "NeedsResident"
NEEDS_PROCESS: Final = "NeedsProcess"
#: Most functions whose answers are remembered.
_MOST: Final = 4096
#: The answer that sends a call elsewhere, by whether the call ran in a process of its own.
_ELSEWHERE: Final = {True: NEEDS_RESIDENT, False: NEEDS_PROCESS}


class SdkCalls:
    """The adapter of live functions."""

    def __init__(
        self, requirements: tuple[str, ...], concurrency: int, *, is_awaited: bool = False
    ) -> None:
        """``is_awaited``: calls of this generation are expected."""
        #: Their environment, built in advance so that the first call need not wait for the build.
        self.ahead = (Spec(requirements=requirements),) if requirements and is_awaited else ()
        self._requirements = requirements
        self._concurrency = concurrency
        #: By the key of a function: whether it has a start hook, as workers have found out.
        self._stays: OrderedDict[Hashable, bool] = OrderedDict()

    def adapted(self, request: FunctionRequest, call: Call) -> Call:
        """Return the call with the SDK in its environment, for a resident if it needs one."""
        if _PACKAGE not in call.imports:
            return call
        wanted = requirements_with_sdk(request.dependencies or (), self._requirements)
        if wanted:
            call = replace(call, spec=replace(call.spec or Spec(), requirements=wanted))
        if self._may_stay(request, call):
            call = replace(call, want=self._resident_of(call))
        return call

    def _may_stay(self, request: FunctionRequest, call: Call) -> bool:
        stays = self._stays.get(call.function_key)
        if stays is None:
            # The hook as JSON text: the source need not be decoded.
            hook = f"\\n@{request.function_name}.init".encode()
            return hook in bytes(request.function_code)
        self._stays.move_to_end(call.function_key)
        return stays

    def again(self, call: Call, outcome: Outcome) -> Call | None:
        """Return the call for the place where its function must run, if it ran elsewhere."""
        if outcome.from_user or outcome.error_type != _ELSEWHERE[call.want is None]:
            return None
        stays = call.want is None
        # An answer that contradicts an earlier one is ignored: calls would go round forever.
        if self._stays.setdefault(call.function_key, stays) is not stays:
            return None
        if len(self._stays) > _MOST:
            self._stays.popitem(last=False)
        return replace(call, want=self._resident_of(call) if stays else None)

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
