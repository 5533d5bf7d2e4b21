"""Which exception a caller gets for each kind of failed outcome."""

import pickle
import traceback

import pytest
from tblib import pickling_support

from flashpool.pool import errors
from flashpool.pool.calls import Outcome
from flashpool.pool.executor import tracebacks

TEXT = 'Traceback (most recent call last):\n  File "remote.py", line 3, in f\nValueError: boom\n'


def pickled(exc: BaseException) -> bytes:
    pickling_support.install(exc)
    return pickle.dumps(exc)


def raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as error:
        return error


def of_user(exc: BaseException, **fields) -> Outcome:
    return Outcome(
        error_type=type(exc).__name__, error=TEXT, exception=pickled(exc), from_user=True, **fields
    )


def test_the_exception_is_raised_with_its_frames():
    error = tracebacks.restore(of_user(raised(ValueError("boom", 3))))
    assert type(error) is ValueError
    assert error.args == ("boom", 3)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["raised"]


def test_an_uncaught_error_prints_the_remote_text():
    error = tracebacks.restore(of_user(raised(ValueError("boom"))))
    printed = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert 'File "remote.py", line 3, in f' in printed
    assert "direct cause" in printed
    assert isinstance(error.__cause__, tracebacks.RemoteTraceback)


def test_causes_stay_and_the_remote_text_follows_the_last():
    def chain():
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError) as caught:
        chain()
    error = tracebacks.restore(of_user(caught.value))
    assert type(error.__cause__) is KeyError
    assert isinstance(error.__cause__.__cause__, tracebacks.RemoteTraceback)


def test_a_context_that_was_suppressed_stays_so():
    def chain():
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None

    with pytest.raises(ValueError) as caught:
        chain()
    assert tracebacks.restore(of_user(caught.value)).__suppress_context__


def test_base_exceptions_are_wrapped():
    error = tracebacks.restore(of_user(raised(SystemExit(3))))
    assert type(error) is SystemExit
    assert error.args == (3,)


def test_without_a_pickle_a_stand_in_describes_the_exception():
    outcome = Outcome(
        error_type="Odd",
        error=TEXT,
        from_user=True,
        details={"class_name": "their.Odd", "args": [1]},
    )
    error = tracebacks.restore(outcome)
    assert type(error) is errors.RemoteException
    assert error.details == {"class_name": "their.Odd", "args": [1]}
    assert "their.Odd" in str(error)
    assert "ValueError: boom" in str(error)


class Exits:
    def __reduce__(self):
        return exit_now, ()


def exit_now():
    raise SystemExit(1)


@pytest.mark.parametrize(
    "data",
    [b"nonsense", pickle.dumps("no exception"), pickle.dumps(Exits()), b"cno_such_module\nE\n)R."],
    ids=["garbage", "not an exception", "exits", "unknown class"],
)
def test_an_exception_that_cannot_be_unpickled_becomes_a_stand_in(data):
    error = tracebacks.restore(
        Outcome(error_type="Odd", error=TEXT, exception=data, from_user=True)
    )
    assert type(error) is errors.RemoteException
    assert error.details["class_name"] == "Odd"


@pytest.mark.parametrize("name", sorted(errors.BY_NAME))
def test_failures_by_the_pool_have_their_own_classes(name):
    details = {"phase": "run", "message": "a detail of that name"}
    error = tracebacks.restore(Outcome(error_type=name, error="why", details=details))
    assert type(error) is errors.BY_NAME[name]
    assert str(error) == "why"
    assert error.details == details


def test_a_users_exception_class_of_the_same_name_is_kept():
    class Timeout(Exception):
        pass

    outcome = Outcome(error_type="Timeout", error=TEXT, from_user=True)
    assert type(tracebacks.restore(outcome)) is errors.RemoteException


def test_the_remote_text_survives_pickling():
    text = tracebacks.RemoteTraceback(TEXT)
    assert str(pickle.loads(pickle.dumps(text))) == str(text)


def test_advice_names_what_a_program_can_change():
    said = "it ran too long. Raise timeout_s if it needs longer"
    output = f"{said}\n\nLast output of the call:\nRaise timeout_s"
    error = tracebacks.restore(Outcome(error_type="Timeout", error=output))
    assert str(error) == (
        "it ran too long. Raise timeout if it needs longer"
        "\n\nLast output of the call:\nRaise timeout_s"
    )


def test_a_refusal_advises_what_a_program_can_change():
    full = errors.Overloaded("full; or raise FLASHPOOL_QUEUE_LIMIT", retry_after_s=1)
    told = tracebacks.refused(full)
    assert (type(told), str(told)) == (errors.Overloaded, "full; or raise queue_limit")
    assert told.details == {"retry_after_s": 1}
    other = OSError("x")
    assert tracebacks.refused(other) is other
