"""The path to the part of a value that JSON cannot represent."""

import pytest

from flashpool.pool._child.serialization.json_faults import where


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": [1, {"b": float("nan")}]}, "at result['a'][1]['b'], which is nan"),
        ({1, 2}, "at result, which is of type set"),
        ([1, (2, b"x")], "at result[1][1], which is of type bytes"),
        ({"a": {(1, 2): 3}}, "at result['a'], which has a key of type tuple"),
        ({"first": float("inf"), "second": object()}, "at result['first'], which is inf"),
        ({"a": [1, "x", None, True, 2.5]}, ""),
    ],
)
def test_the_path_to_the_fault_is_found(value, told):
    assert where(value) == told


def test_a_circular_value_is_handled():
    value = []
    value.append(value)
    assert where(value) == ""
