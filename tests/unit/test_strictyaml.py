"""The strict part of YAML: what it takes means the same to PyYAML, and what it refuses has a line and a reason."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.node.owner.strictyaml import YamlError, read

PIECES = st.sampled_from(
    [
        *"abn059:- #,[]{}'\"\\~/.*&!%@=|>?_\n\n\n  é",
        *("key: ", "\nb: ", "\n  c: ", "\n- ", "- x", "  ", "[a, 1]", "{a: 1}", "<<", "---", "..."),
        *("true", "yes", "null", "1.5", "1e5", "0x1", "012", "1_0", "20:30", "2026-01-02", ".inf"),
    ]
)
PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(10**17), 10**17),
    st.floats(-1e9, 1e9, allow_nan=False).map(lambda number: float(f"{number:.3f}")),
    st.text("abcXYZ019 .:/~#'\"\\,[]{}*-_é", max_size=12),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=20).map("a: {}".format))
def test_what_is_taken_means_the_same_to_every_reader(text):
    try:
        plain = read(text).plain
    except YamlError:
        return
    same(plain, yaml.safe_load(text))


@given(
    st.dictionaries(st.from_regex(r"k[a-z0-9_]{0,8}", fullmatch=True), PLAIN | st.lists(PLAIN, max_size=3), min_size=1)
)
def test_what_people_write_is_taken(values):
    def written(value):
        match value:
            case bool():
                return str(value).lower()
            case int() | float():
                return f"{value:.3f}" if isinstance(value, float) else str(value)
            case list():
                return "[" + ", ".join(map(written, value)) + "]"
        return "'" + value.replace("'", "''") + "'"

    lines = [f"{key}: {written(value)}  # {key}" for key, value in values.items()]
    same(read("\n".join(lines)).plain, values)
    in_lines = [
        f"{key}:\n" + "\n".join(f"  - {written(item)}" for item in value)
        if isinstance(value, list) and value
        else f"{key}: {written(value)}"
        for key, value in values.items()
    ]
    same(read("\n".join(in_lines)).plain, values)


def same(one, other):
    """Equal, and of the same types: 1 is not true, nor 1.0."""
    assert repr(one) == repr(other)


def test_a_policy_as_people_write_it():
    text = """
# The radiology's
code: approve      # by digest
pythons: [/opt/ml/bin/python, ~/venv/bin/python]
leave:
  tensors:
    except: ["head.*", 'it''s', "a \\"b\\" \\\\c"]
  metrics:
  - val_loss
  - "20:00"
limits: {cpus: 4, memory: 16G, gpus: [0, 1]}
share: 0.5
nothing:
"""
    node = read(text)
    assert node.plain == {
        "code": "approve",
        "pythons": ["/opt/ml/bin/python", "~/venv/bin/python"],
        "leave": {"tensors": {"except": ["head.*", "it's", 'a "b" \\c']}, "metrics": ["val_loss", "20:00"]},
        "limits": {"cpus": 4, "memory": "16G", "gpus": [0, 1]},
        "share": 0.5,
        "nothing": None,
    }
    assert yaml.safe_load(text) == node.plain
    assert node.value["limits"].value["memory"].line == 11
    assert node.value["leave"].value["metrics"].value[1].line == 10
    assert read("").value is read("# nothing\n\n").value is None


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\na: 2", 2, "`a` is given twice, first on line 1"),
        ("a: {b: 1, b: 2}", 1, "`b` is given twice"),
        ("a:\n\t- b", 2, "has a tab"),
        ("a: \x07", 1, r"has the character '\x07'"),
        ("a: b\u2028c: d", 1, "not every reader takes alike"),
        ("a: &here 1", 1, "`&` cannot stand there"),
        ("a: *here", 1, "put a text with such a character between quotes"),
        ("a: !!python/object:os.system x", 1, "`!` cannot stand there"),
        ("a: |\n  b", 2, "`a` above it has its value already"),
        ("a: >-", 1, "`>` cannot stand there"),
        ("a: on", 1, "write true, or put it between quotes"),
        ("a: No", 1, "write false, or put it between quotes"),
        ("a: 012", 1, "`012` is not the same to all readers"),
        ("a: 1e-5", 1, "write it such as 1.0e-5"),
        ("a: 20:00", 1, "put it between quotes"),
        ("a: 2026-01-01", 1, "put it between quotes"),
        ("on: 1", 1, "the key `on` is a truth value"),
        ("a: 'b", 1, "a text has no ' at its end"),
        ('a: "\\n"', 1, r"`\n` in double quotes means something else"),
        ("a: [b,\n  c]", 2, "`a` above it has its value already"),
        ("a: [b", 1, "`]` is missing: what is in brackets has to end on its line"),
        ("a: [b,]", 1, "a value is missing before `]`"),
        ("a: {b}", 1, "should be a key, a colon, a space and a value"),
        ("a: b: c", 1, "`:` cannot stand there"),
        ("a: b\n  c", 2, "`a` above it has its value already"),
        ("a:\n  b: 1\n c: 2", 3, "indented unlike the lines above it"),
        ("a:\n  - b: 1", 2, "write it in brackets"),
        ("- a", 1, "not a list"),
        ("---\na: 1", 1, "should be a key"),
        ("<<: {a: 1}", 1, "should be a key"),
        ("a: " + "[" * 50, 1, "nested more than 8 times"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(30)), 10, "nested more than 8 times"),
        ("# " + "x" * 70_000, 1, "is longer than 65536 characters"),
        ('a: "b" c', 1, "`c` follows a value that is at its end"),
        ('a: {"b": 1}', 1, "should be a key"),
    ],
)
def test_a_refusal_names_the_line_and_the_reason(text, line, said):
    with pytest.raises(YamlError) as refused:
        read(text)
    assert refused.value.line == line
    assert said in refused.value.message
