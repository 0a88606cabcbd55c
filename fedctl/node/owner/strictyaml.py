"""A small part of YAML, read strictly: what it takes means to every reader of YAML what it means here.

Mappings and lists in lines or in brackets, texts in quotes or without, whole and decimal numbers, true, false, null and
comments. Anything else is refused with its line: anchors, tags, texts over several lines, tabs, keys given twice, and
words that some readers take for something else, such as `on` or `012`. Python 3.8, standard library only.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, NamedTuple, NoReturn, Tuple

LONGEST = 2**16
DEEPEST = 8

_KEY = re.compile(r"([A-Za-z][A-Za-z0-9_]*) *:(?= |\Z)")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})\Z")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]+([eE][-+][0-9]{1,3})?\Z")
_AMBIGUOUS = re.compile(
    r"(y|n|yes|no|on|off|true|false|null|nan|inf)\Z"
    r"|[-+.]?[0-9][0-9_,.:]*(e[-+]?[0-9]*)?\Z"  # 012, 1_000, 1e-5, 20:30, 1.2.3
    r"|[-+]?\.(inf|nan|[0-9].*)\Z|[-+]?0[box][0-9a-f_]*\Z"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([t ].*)?\Z",
    re.IGNORECASE,
)
"""Plain words that one reader or another takes for a truth value, a number or a date."""
_STARTS = frozenset("/~._-+")
_GOES_ON = frozenset("/~._-+*@%=: ")
_QUOTE_IT = "put a text with such a character between quotes"


class YamlError(Exception):
    """What cannot be read, on which line, from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class Node(NamedTuple):
    """A value and its line, from 1; of a mapping or a list, nodes are inside."""

    value: Any
    line: int

    @property
    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value


def read(text: str) -> Node:
    """The mapping that a text is, None where it says nothing; raises YamlError."""
    if len(text) > LONGEST:
        raise YamlError(1, f"is longer than {LONGEST} characters")
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        content = line[:-1] if line.endswith("\r") else line
        strange = next((character for character in content if not character.isprintable()), None)
        if strange == "\t":
            raise YamlError(number, "has a tab: indent with spaces")
        if strange is not None:
            raise YamlError(number, f"has the character {strange!a}, which not every reader takes alike")
        stripped = content.strip(" ")
        if stripped and not stripped.startswith("#"):
            lines.append(_Line(number, len(content) - len(content.lstrip(" ")), stripped))
    if not lines:
        return Node(None, 1)
    if lines[0].indent:
        raise YamlError(lines[0].number, "is indented, and nothing is above it")
    node, rest = _block(lines, 0, 0)
    if rest < len(lines):
        raise YamlError(lines[rest].number, "is indented unlike the lines above it")
    if not isinstance(node.value, dict):
        raise YamlError(node.line, "should be keys and their values, such as `rounds: 200`, not a list")
    return node


class _Line(NamedTuple):
    number: int
    indent: int
    text: str


def _block(lines: List[_Line], first: int, depth: int) -> Tuple[Node, int]:
    """The mapping or the list that begins with a line, and the number of the line after it."""
    if depth > DEEPEST:
        raise YamlError(lines[first].number, f"is nested more than {DEEPEST} times")
    is_list = _is_item(lines[first].text)
    return _list(lines, first) if is_list else _mapping(lines, first, depth)


def _is_item(text: str) -> bool:
    return text == "-" or text.startswith("- ")


def _list(lines: List[_Line], first: int) -> Tuple[Node, int]:
    items: List[Node] = []
    at, indent = first, lines[first].indent
    while at < len(lines) and lines[at].indent == indent and _is_item(lines[at].text):
        line = lines[at]
        text = line.text[1:].strip(" ")
        if not text or text.startswith("#"):
            raise YamlError(line.number, "is an item without a value")
        if _is_item(text) or _KEY.match(text):
            raise YamlError(line.number, "is a list or a mapping within an item: write it in brackets")
        items.append(_Value(text, line.number).whole())
        at += 1
    if at < len(lines) and lines[at].indent > indent:
        raise YamlError(lines[at].number, "is indented, and the item above it has its value already")
    return Node(items, lines[first].number), at


def _mapping(lines: List[_Line], first: int, depth: int) -> Tuple[Node, int]:
    entries: Dict[str, Node] = {}
    at, indent = first, lines[first].indent
    while at < len(lines) and lines[at].indent == indent:
        line = lines[at]
        key = _key(line.text, line.number, entries)
        text = line.text[key.end() :].strip(" ")
        at += 1
        is_empty = not text or text.startswith("#")
        below = lines[at] if at < len(lines) else None
        if below and is_empty and (below.indent > indent or (below.indent == indent and _is_item(below.text))):
            entries[key[1]], at = _block(lines, at, depth + 1)
        elif below and below.indent > indent:
            raise YamlError(below.number, f"is indented, and `{key[1]}` above it has its value already")
        else:
            entries[key[1]] = Node(None, line.number) if is_empty else _Value(text, line.number).whole()
    return Node(entries, lines[first].number), at


def _key(text: str, number: int, known: Dict[str, Node]) -> re.Match[str]:
    key = _KEY.match(text)
    if key is None:
        raise YamlError(number, "should be a key, a colon, a space and a value, such as `rounds: 200`")
    if _AMBIGUOUS.match(key[1]):
        raise YamlError(number, f"the key `{key[1]}` is a truth value or a number to some readers")
    if key[1] in known:
        raise YamlError(number, f"`{key[1]}` is given twice, first on line {known[key[1]].line}")
    return key


class _Value:
    """What stands behind a key or a dash, on one line."""

    def __init__(self, text: str, line: int) -> None:
        self.text = text
        self.line = line
        self.at = 0

    def refuse(self, message: str) -> NoReturn:
        raise YamlError(self.line, message)

    def whole(self) -> Node:
        """The value, behind which only a comment may follow."""
        node = self.value(within="", depth=0)
        rest = self.text[self.at :]
        if rest and not re.match(" +#", rest):
            self.refuse(f"`{rest.strip(' ')[:20]}` follows a value that is at its end")
        return node

    def value(self, within: str, depth: int) -> Node:
        """The value from here on; `within` is the bracket that ends what it is in, empty for none."""
        if depth > DEEPEST:
            self.refuse(f"is nested more than {DEEPEST} times")
        start = self.text[self.at]
        if start == "[":
            return self.list(depth)
        if start == "{":
            return self.mapping(depth)
        if start in "'\"":
            return Node(self.quoted(start), self.line)
        return Node(self.meant(self.plain(within)), self.line)

    def list(self, depth: int) -> Node:
        items: List[Node] = []
        while self.goes_on("]", is_first=not items):
            items.append(self.value("]", depth + 1))
        return Node(items, self.line)

    def mapping(self, depth: int) -> Node:
        entries: Dict[str, Node] = {}
        while self.goes_on("}", is_first=not entries):
            key = _key(self.text[self.at :], self.line, entries)
            self.at += key.end()
            self.skip()
            if self.at == len(self.text) or self.text[self.at] in ",}":
                self.refuse(f"`{key[1]}` has no value")
            entries[key[1]] = self.value("}", depth + 1)
        return Node(entries, self.line)

    def goes_on(self, end: str, *, is_first: bool) -> bool:
        """Whether another entry comes before the bracket `end`; it, or what leads to the entry, is passed over."""
        self.at += is_first
        self.skip()
        now = self.text[self.at : self.at + 1]
        if now == end:
            self.at += 1
            return False
        if not is_first and now == ",":
            self.at += 1
            self.skip()
        elif not is_first and now:
            self.refuse(f"`{now}` stands where `,` or `{end}` should")
        now = self.text[self.at : self.at + 1]
        if not now or now == "#":
            self.refuse(f"`{end}` is missing: what is in brackets has to end on its line")
        if now in ",]}":
            self.refuse(f"a value is missing before `{now}`")
        return True

    def skip(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1

    def quoted(self, quote: str) -> str:
        found: List[str] = []
        self.at += 1
        while self.at < len(self.text):
            character, following = self.text[self.at], self.text[self.at + 1 : self.at + 2]
            self.at += 1
            if character == quote and not (quote == "'" and following == quote):
                if self.text[self.at : self.at + 1] == ":":
                    self.refuse("a key needs no quotes")
                return "".join(found)
            if character == "\\" and quote == '"':
                if following not in ('"', "\\"):
                    self.refuse(f"`\\{following}` in double quotes means something else: use single quotes")
                self.at += 1
                character = following
            elif character == quote:
                self.at += 1
            found.append(character)
        raise YamlError(self.line, f"a text has no {quote} at its end: it has to end on its line")

    def plain(self, within: str) -> str:
        """A text without quotes, to its end: a comment, the line's, or in brackets the entry's."""
        start = self.at
        while self.at < len(self.text):
            character, following = self.text[self.at], self.text[self.at + 1 : self.at + 2]
            if (within and character in ",]}") or (character == " " and following == "#"):
                break
            is_first = self.at == start
            if not character.isalnum() and character not in (_STARTS if is_first else _GOES_ON):
                self.refuse(f"`{character}` cannot stand there: {_QUOTE_IT}")
            if character == ":" and not (following.isalnum() or following in ("/", "_", ".")):
                self.refuse(f"`:` cannot stand there: {_QUOTE_IT}")
            self.at += 1
        text = self.text[start : self.at].rstrip(" ")
        if text in ("-", "+") or text.startswith(("- ", "-:", "+ ")):
            self.refuse(f"`{text[0]}` cannot stand there: {_QUOTE_IT}")
        self.at = start + len(text)
        return text

    def meant(self, text: str) -> Any:
        """The value that a plain text stands for."""
        if text in ("true", "false"):
            return text == "true"
        if text in ("null", "~"):
            return None
        if _WHOLE.match(text):
            return int(text)
        if _DECIMAL.match(text):
            return float(text)
        if _AMBIGUOUS.match(text):
            self.refuse(f"`{text}` is not the same to all readers: {_instead(text)}")
        return text


def _instead(text: str) -> str:
    if text.lower() in ("y", "yes", "on", "true"):
        return "write true, or put it between quotes"
    if text.lower() in ("n", "no", "off", "false"):
        return "write false, or put it between quotes"
    if re.match(r"[0-9]+e-?[0-9]+\Z", text, re.IGNORECASE):
        return "write it such as 1.0e-5"
    return "put it between quotes, or write a plain number such as 200 or 0.5"
