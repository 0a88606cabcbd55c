"""What may leave a node, by its owner's policy: tensors by their names, metrics, and the words of errors and logs."""

from __future__ import annotations

import os
import re
import struct
from io import FileIO
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Set

from fedctl.node.agent import open_own, parse
from fedctl.node.owner.terms import Policy, matches

LONGEST_HEADER = 2**24
"""Bytes, as `fedctl.header` bounds it."""
MASKED, PACKED = "masked", "packed"
"""The only tensor of a masked update, and of one that is a single stream: the result says what they stand for."""
KEPT_BACK = "an error whose text stays there: the node's owner finds it in the task's train.log"

_PART = re.compile(r"//[0-9]+\Z")
_CONTROL = re.compile(r"\Acontrol/")
_KIND = re.compile(
    r"(?:[\w./ -]{1,200}\.py:[0-9]{1,9}: )?\w{0,100}(?:Error|Exception|Exit|Interrupt|Iteration|Warning)\b"
    r"(?:: \[Errno [0-9]{1,4}\] [A-Za-z ]{1,60})?"
)
"""Where in the code it happened, which kind of error it is, and the system's own words for it."""
_OWN_WORDS = re.compile(
    r"cancelled\Z|the process (was killed by [A-Z0-9a-z ]{1,60}(: out of memory)?( \(out of memory, or by hand\))?"
    r"|ended with status -?[0-9]{1,4}|that worked on the task is gone)\Z"
)
"""What fedctl itself says of a task, with no word of the code's."""


def leaving(policy: Policy, result: Mapping[str, Any], update: Path) -> Optional[str]:
    """Why an update's file may not leave; None where it may, or there is none. `result` is that of its task."""
    try:
        with open_own(update, below=2, buffering=0) as file:
            return file_leaving(policy, result, file)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"the update cannot be judged: {error.strerror}"


def file_leaving(policy: Policy, result: Mapping[str, Any], update: FileIO) -> Optional[str]:
    """The same of a file that is open, so that what is judged is what is sent."""
    try:
        names = names_in(update)
    except (OSError, ValueError) as error:
        return f"the update cannot be judged: {error}"
    if policy.secure_aggregation.required and names != {MASKED}:
        return "the owner of this node lets no update leave that is not masked"
    terms = policy.differential_privacy
    noise = (result.get("privacy") or {}).get("noise")
    if terms is not None and "central" not in terms.modes and not noise:
        return "the owner of this node lets no update leave without noise"
    stand_in = names in ({MASKED}, {PACKED})
    meant = {name for name in result.get("tensors") or [] if isinstance(name, str)} if stand_in else names
    tensors = policy.leave.tensors
    if stand_in and not meant and (tensors.only or tensors.kept):
        return "the update does not say which tensors it stands for"
    strange = sorted(name for name in meant if not tensors.covers(_CONTROL.sub("", name)))
    return f"the owner of this node does not let tensor {strange[0]!r:.200} leave" if strange else None


def names_in(file: FileIO) -> Set[str]:
    """The names of the tensors of a safetensors file, those of a tensor's parts as its own.

    Raises ValueError for another file, and where the tensors do not take up all of the file: a gap could hold anything.
    """
    size = os.fstat(file.fileno()).st_size
    first = os.pread(file.fileno(), 8, 0)
    (length,) = struct.unpack("<Q", first) if len(first) == 8 else (0,)
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise ValueError("it is no safetensors file")
    entries = parse(os.pread(file.fileno(), length, 8))
    entries.pop("__metadata__", None)
    try:
        spans = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
        at = 0
        for begin, end in spans:
            if begin != at or end < begin:
                raise ValueError("its tensors do not follow each other")
            at = end
    except (TypeError, KeyError):
        raise ValueError("it is no safetensors file") from None
    if at != size - 8 - length:
        raise ValueError("it holds more than its tensors")
    return {_PART.sub("", name) for name in entries}


def may_read(policy: Policy, name: str) -> Optional[str]:
    """Why a file of a task may not be read, for its name; an update is to be judged by `leaving` too."""
    if name == "update.safetensors" or policy.leave.logs:
        return None
    return "the owner of this node lets no logs leave: they are in its folder"


def allowed_words(policy: Policy, said: Mapping[str, Any]) -> Dict[str, Any]:
    """A result or a telling of progress without metrics, and words of errors, that may not leave."""
    allowed = dict(said)
    if isinstance(said.get("metrics"), dict):
        allowed["metrics"] = _metrics(policy, said["metrics"])
    if isinstance(said.get("scores"), dict):
        allowed["scores"] = {
            label: {**score, "metrics": _metrics(policy, score.get("metrics"))}
            for label, score in said["scores"].items()
            if isinstance(score, dict)
        }
    if not policy.leave.logs:
        if "detail" in said:
            allowed["detail"] = ""
        was_declined = said.get("ask_again_s") is not None  # by the owner's own words
        if isinstance(said.get("error"), str) and not was_declined:
            allowed["error"] = allowed_error(policy, said["error"])
    return allowed


def _metrics(policy: Policy, metrics: Any) -> Dict[str, Any]:
    if not isinstance(metrics, dict):
        return {}
    terms = policy.leave.metrics
    return {name: value for name, value in metrics.items() if terms is None or matches(name, terms)}


def allowed_error(policy: Policy, text: str) -> str:
    """What may be said of an error: all of it, or its kind and the line of the code, since a text may quote data."""
    if policy.leave.logs or _OWN_WORDS.match(text):
        return text
    kind = _KIND.match(text)
    return kind[0] if kind else KEPT_BACK
