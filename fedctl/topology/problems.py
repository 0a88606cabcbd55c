"""What is wrong with a document, and the one error that says all of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fedctl.errors import ConfigError
from fedctl.topology.document import Address, Document
from fedctl.topology.schema import section_at
from fedctl.topology.wording import describe, shown, suggestion

_MOST = 10
_MISSING = "missing"
_KINDS = {
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, where, and what to do about it."""

    address: Address
    text: str
    hint: str | None = None


def refusal(problems: Sequence[Problem], document: Document) -> ConfigError:
    """All problems in the order of the file: the first with its hint apart, the others a line each."""
    first, *others = sorted(problems, key=lambda problem: _order(problem, document))
    lines = [_sentence(first, document)]
    lines += [_sentence(p, document) + (f" ({p.hint})" if p.hint else "") for p in others[: _MOST - 1]]
    if len(others) >= _MOST:
        lines.append(f"and {len(others) - _MOST + 1} more")
    return ConfigError("\n".join(lines), hint=first.hint)


def problems_of(error: ValidationError, document: Document) -> Iterator[Problem]:
    """Pydantic's errors in our words."""
    for details in error.errors(include_url=False):
        address = details["loc"]
        text, hint = _words(details["type"], address, details, document)
        yield Problem(address=address, text=text, hint=hint)


def _words(kind: str, address: Address, details: Any, document: Document) -> tuple[str, str | None]:
    given, context = details["input"], details.get("ctx", {})
    match kind:
        case "refused":
            return context["text"], context["hint"]
        case "extra_forbidden":
            keys = tuple(section_at(address[:-1]).allowed())
            return "unknown key", suggestion(str(address[-1]), keys, otherwise="the keys there are")
        case "missing":
            return _MISSING, f"add `{address[-1]}:` to {shown(address[:-1]) or 'the top level'}"
        case "greater_than_equal":
            return f"should be at least {context['ge']}, not {describe(given)}", None
        case "less_than_equal":
            return f"should be at most {context['le']}, not {describe(given)}", None
        case _ if kind in _KINDS:
            return f"should be {_KINDS[kind]}, not {describe(given)}", _type_hint(kind, given, document, address)
        case _:
            return f"{details['msg']}, not {describe(given)}", None


def _type_hint(kind: str, given: Any, document: Document, address: Address) -> str | None:
    """Why a value is not of the type that its writer thinks it is."""
    raw = document.place(address).raw
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f'YAML reads `{raw}` as {describe(given)}: write "{raw}" in quotes'
    if isinstance(given, bool) and raw.lower() not in {"true", "false"}:
        return f"YAML reads `{raw}` as {describe(given)}"
    if kind == "int_type" and isinstance(given, str) and given.isdecimal():
        return "take the quotes away"
    if given is None:
        return "give it a value, or remove the key"
    return None


def _order(problem: Problem, document: Document) -> tuple[bool, int]:
    """By line; what is missing comes last, for it is often there under a misspelt name."""
    return problem.text == _MISSING, document.place(problem.address).line


def _sentence(problem: Problem, document: Document) -> str:
    return document.place(problem.address).sentence(problem.address, problem.text)
