"""The kinds of value that fed.yaml has, each refusing what it is not with a sentence of its own.

A field is a type for pydantic whose errors carry `text` and, where there is one, `hint`.
"""

import math
import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from fedctl.federation import Codecs, Named
from fedctl.records import NODE_NAME
from fedctl.topology.wording import describe, either, nearest

NAME_RULE = "should be at most 64 letters, digits, dots, `_` or `-`, beginning with a letter or a digit, without `..`"
SET_BY_FEDCTL = {
    "accelerator": "give `accelerator` to the nodes, or to `defaults`",
    "devices": "give `devices` to the nodes, or to `defaults`",
    "callbacks": "name them in `task.callbacks`, as `file.py:Class`",
    "num_nodes": "remove it: a node trains on its own `accelerator` and `devices`",
    "logger": "remove it: metrics go to the run's folder",
    "enable_checkpointing": "remove it: every round's model is kept in the run's folder",
    "enable_progress_bar": "remove it: progress goes to the dashboard",
    "enable_model_summary": "remove it: nobody watches a node's terminal",
    "default_root_dir": "remove it: every task has a folder of its own",
}
"""The arguments of Lightning's Trainer that are not the user's to give, and what to do instead."""

_REFERENCE = re.compile(r"(?P<file>[^:\\]+\.py):(?P<member>[^:]+)")
_WAYS = ("up", "down")


def refusal(text: str, hint: str | None = None) -> PydanticCustomError:
    return PydanticCustomError("refused", "{text}", {"text": text, "hint": hint})


def is_name(text: str) -> bool:
    """Whether it may name a federation or a node: it becomes the name of a folder."""
    return NODE_NAME.fullmatch(text) is not None and ".." not in text


def _name(text: str) -> str:
    if not is_name(text):
        raise refusal(f"{NAME_RULE}, not {describe(text)}")
    return text


def _filled(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise refusal(f"should be printable text, not {describe(text)}")
    return text


def _word(text: str) -> str:
    if not text.isprintable() or len(text.split()) != 1 or text.strip() != text or text.startswith("-"):
        raise refusal(f"should be one word that does not begin with `-`, not {describe(text)}")
    return text


def one_of(*choices: str) -> PlainValidator:
    """One of a few words."""

    def check(value: Any) -> str:
        if isinstance(value, str) and value in choices:
            return value
        near = nearest(value, choices) if isinstance(value, str) else None
        raise refusal(f"should be {either(choices)}, not {describe(value)}", near and f"did you mean `{near}`?")

    return PlainValidator(check)


def _share_or_count(value: Any) -> float | int:
    if type(value) is float and 0 < value <= 1:
        return value
    if type(value) is int and value >= 1:
        return value
    raise refusal(
        f"should be a share above 0 and up to 1.0, or a number of nodes from 1, not {describe(value)}",
        "0.5 is half of the nodes, 1.0 all of them, and 1 a single one",
    )


def _factor(value: Any) -> float:
    if type(value) in (int, float) and 1 <= value <= 10:
        return float(value)
    raise refusal(
        f"should be a number from 1 to 10, not {describe(value)}", "1.3 asks 13 nodes where the updates of 10 are taken"
    )


def _limit(value: Any) -> float | None:
    if value is None or (type(value) in (int, float) and 0 < value < math.inf):
        return value  # type: ignore[no-any-return]
    raise refusal(f"should be a number above 0, not {describe(value)}", "null is without a limit")


def _above_zero(value: Any) -> float:
    if type(value) in (int, float) and 0 < value < math.inf:
        return float(value)
    raise refusal(f"should be a number above 0, not {describe(value)}")


def _inner_share(value: Any) -> float:
    if type(value) is float and 0 < value < 1:
        return value
    raise refusal(f"should be a number above 0 and below 1, not {describe(value)}")


def _majority(value: Any) -> float:
    """More than half: two sets of so many have one in common."""
    if type(value) in (int, float) and 0.5 < value <= 1:
        return float(value)
    raise refusal(
        f"should be a share above 0.5 and up to 1.0, not {describe(value)}",
        "with half of the neighbours or fewer, two halves could be told different things",
    )


def _devices(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and value >= 1):
        return value  # type: ignore[no-any-return]
    raise refusal(f"should be auto or a whole number from 1, not {describe(value)}")


def _strategy(value: Any) -> Named:
    return _named(value, "strategy", "such as {name: fedavg}")


def _local_rule(value: Any) -> Named | None:
    if isinstance(value, dict) and "phases" in value and "name" not in value:
        return Named(name="phases", options=value)
    return None if value is None else _named(value, "local rule", "such as {name: fedprox}; null is without one")


def _staleness(value: Any) -> Named:
    return _named(value, "function of staleness", "such as {name: polynomial, exponent: 0.5}")


def _named(value: Any, what: str, hint: str) -> Named:
    fields = {"name": value} if isinstance(value, str) else value
    if not isinstance(fields, dict):
        raise refusal(f"should be a name, or a mapping with a name and options, not {describe(value)}")
    match fields.get("name"):
        case str(name) if name.strip():
            return Named(name=name, options={key: option for key, option in fields.items() if key != "name"})
        case other:
            raise refusal(f"should have the name of a {what}, not {describe(other)}", hint)


def _codecs(value: Any) -> Codecs:
    ways = value if isinstance(value, dict) and not value.keys().isdisjoint(_WAYS) else {"up": value}
    if strange := [str(key) for key in ways if key not in _WAYS]:
        near = nearest(strange[0], _WAYS)
        raise refusal(
            f"{strange[0]}: unknown key", f"did you mean `{near}`?" if near else "updates go `up`, models `down`"
        )
    return Codecs(**{way: _pipeline(many) for way, many in ways.items()})


def _pipeline(value: Any) -> tuple[Named, ...]:
    """A codec, or a list of them; `none` is without one."""
    if value in (None, "none", ["none"]):
        return ()
    many = value if isinstance(value, list) else [value]
    return tuple(_codec(one) for one in many)


def _codec(value: Any) -> Named:
    """`topk`, `{topk: {keep: 0.01}}` or `{name: topk, keep: 0.01}`."""
    match value:
        case dict() if len(value) == 1 and "name" not in value:
            ((name, options),) = value.items()
            if isinstance(options, dict) and "name" not in options:
                return Named(name=name, options=options)
            raise refusal(
                f"should have the options of {name} as a mapping, not {describe(options)}", "such as topk: {keep: 0.01}"
            )
        case dict() if "name" not in value:
            raise refusal("names several codecs in one mapping", "write a list, as [delta, topk: {keep: 0.01}, int8]")
        case dict() | str():
            return _named(value, "codec", "such as {topk: {keep: 0.01}}")
        case _:
            raise refusal(
                f"should be a codec or a list of them, not {describe(value)}", "such as [delta, int8, zstd], or none"
            )


def _reference(text: str) -> str:
    match = _REFERENCE.fullmatch(text)
    if match is None or not match["member"].isidentifier():
        raise refusal(f"should be a file and a class in it, not {describe(text)}", "such as `model.py:DigitsNet`")
    path = PurePosixPath(match["file"])
    if path.is_absolute() or ".." in path.parts:
        raise refusal(
            f"should name a file in the folder of fed.yaml, not {describe(match['file'])}",
            "only that folder is sent to the nodes: move the file there",
        )
    return text


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(one, str) and one.strip() for one in patterns):
        raise refusal(
            f"should be a pattern of names of tensors, or a list of them, not {describe(value)}",
            'such as ["head.*"]; names are those of the model\'s state_dict()',
        )
    return tuple(patterns)


def _periods(value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, dict) or not all(type(each) is int and each >= 1 for each in value.values()):
        raise refusal(
            f"should be patterns of names of tensors with whole numbers from 1, not {describe(value)}",
            'such as {"encoder.*": 5}, which travel in every fifth round',
        )
    return tuple((str(pattern), period) for pattern, period in value.items())


def _share_of_norm(value: Any) -> float:
    if type(value) in (int, float) and 0 <= value < 1:
        return float(value)
    raise refusal(
        f"should be a number from 0 and below 1, not {describe(value)}",
        "0.01 has a tensor wait until it has changed by a hundredth of its norm",
    )


def _some(nodes: list[Any]) -> list[Any]:
    if not nodes:
        raise refusal("there are no nodes", "such as - {name: alice, data: {site: 0}}")
    return nodes


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, AfterValidator(_filled)]
Word = Annotated[str, AfterValidator(_word)]
Reference = Annotated[str, AfterValidator(_reference)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Port = Annotated[int, Field(ge=1, le=65_535)]
ShareOrCount = Annotated[float | int, PlainValidator(_share_or_count)]
Factor = Annotated[float, PlainValidator(_factor)]
Limit = Annotated[float | None, PlainValidator(_limit)]
AboveZero = Annotated[float, PlainValidator(_above_zero)]
InnerShare = Annotated[float, PlainValidator(_inner_share)]
Majority = Annotated[float, PlainValidator(_majority)]
DpMode = Annotated[str, one_of("central", "distributed", "local")]
Devices = Annotated[int | str, PlainValidator(_devices)]
Accelerator = Annotated[str, one_of("auto", "cpu", "gpu", "mps")]
Mode = Annotated[str, one_of("min", "max")]
ScheduleMode = Annotated[str, one_of("synchronous", "buffered")]
Staleness = Annotated[Named, PlainValidator(_staleness)]
CodecList = Annotated[Codecs, PlainValidator(_codecs)]
Strategy = Annotated[Named, PlainValidator(_strategy)]
LocalRule = Annotated[Named | None, PlainValidator(_local_rule)]
Patterns = Annotated[tuple[str, ...], PlainValidator(_patterns)]
Periods = Annotated[tuple[tuple[str, int], ...], PlainValidator(_periods)]
ShareOfNorm = Annotated[float, PlainValidator(_share_of_norm)]
SomeOf = AfterValidator(_some)
