"""What live functions of SDK 2.0 get beyond a plain call."""

import json

from flashpool.envs import Spec
from flashpool.frontends import schema
from flashpool.frontends.call_builder import Defaults
from flashpool.frontends.contracts.sdk2.live_calls import SdkCalls, requirements_with_sdk
from flashpool.pool.calls import Outcome

SDK = ("runpod>=2.0.0rc2,<3",)
MODULE = "from runpod import App\napp = App('a')\ndef f(): pass\n"
PLAIN = "def f(): pass\n"
DEFAULTS = Defaults(result_limit=None, concurrency=1)


def adapted(adapter, code, **fields):
    body = json.dumps({"function_name": "f", "function_code": code, **fields}).encode()
    request, body, _ = schema.decode(body)
    return adapter.adapted(request, DEFAULTS.call_of(request, body, stream=False))


def test_a_source_that_imports_the_sdk_gets_it_in_its_environment():
    assert adapted(SdkCalls(SDK, 1), MODULE).spec == Spec(requirements=SDK)
    call = adapted(SdkCalls(SDK, 1), MODULE, dependencies=["alpha"])
    assert call.spec.requirements == ("alpha", *SDK)


def test_other_sources_are_left_alone():
    assert adapted(SdkCalls(SDK, 1), PLAIN).spec is None
    assert adapted(SdkCalls((), 1), MODULE).spec is None


def test_a_request_keeps_the_sdk_that_it_names():
    assert requirements_with_sdk(["RunPod==2.1"], SDK) == ("RunPod==2.1",)
    assert requirements_with_sdk(["not a requirement !"], SDK)[1:] == SDK


def test_a_function_with_a_start_hook_goes_to_one_resident():
    adapter = SdkCalls(SDK, 3)
    first = adapted(adapter, MODULE)
    assert first.want is None
    ended = Outcome(error_type="NeedsResident", error="it has a start hook")
    again = adapter.again(first, ended)
    assert again.want.concurrency == 3
    assert adapter.again(again, ended) is None
    assert adapted(adapter, MODULE).want == again.want
    assert adapted(adapter, MODULE + "x = 1\n").want is None


def test_a_source_that_seems_to_have_a_start_hook_goes_to_a_resident():
    code = MODULE + "@f.init\ndef load(): pass\n"
    adapter = SdkCalls(SDK, 1)
    first = adapted(adapter, code)
    assert first.want is not None
    # Another function of the module, without a hook, is called as usual.
    assert adapted(adapter, code.replace("@f.", "@other.")).want is None
    ended = Outcome(error_type="NeedsProcess", error="it has no start hook")
    again = adapter.again(first, ended)
    assert again.want is None
    assert adapted(adapter, code).want is None
    # A module that changes its answer each time is not retried for ever.
    assert adapter.again(again, Outcome(error_type="NeedsResident", error="it has one")) is None


def test_a_users_exception_of_that_name_is_not_retried():
    adapter = SdkCalls(SDK, 1)
    ended = Outcome(error_type="NeedsResident", error="raised", from_user=True)
    assert adapter.again(adapted(adapter, MODULE), ended) is None


def test_the_sdks_environment_is_built_ahead_where_calls_are_expected():
    assert SdkCalls(SDK, 1).ahead == ()
    assert SdkCalls((), 1, is_awaited=True).ahead == ()
    (spec,) = SdkCalls(SDK, 1, is_awaited=True).ahead
    assert spec == adapted(SdkCalls(SDK, 1), MODULE).spec
