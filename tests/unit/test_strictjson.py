import pytest

from fedctl.strictjson import loads


def test_what_means_one_thing_is_read():
    assert loads('{"a": [1, {"a": null}]}') == {"a": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"x": [{"b": 1, "c": 1, "b": 1}]}', "'b' twice"),
        ('{"a": 1, "\\u0061": 2}', "'a' twice"),
        ("NaN", "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting"),
    ],
)
def test_what_does_not_is_a_valueerror(text, reason):
    with pytest.raises(ValueError, match=reason):
        loads(text)
