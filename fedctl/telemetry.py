"""What is told of work under way: `metrics.jsonl` and the views hear it, the journal never does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedctl import strictjson
from fedctl.records import Progress

LONGEST_TEXT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """A node is being made ready; `text` is the newest line about it, such as pip's."""

    node: str
    text: str


Telemetry = Progress | Preparing


def dump(sample: Telemetry, at: datetime) -> str:
    """One line of JSON, without its newline; `at` is the coordinator's wall clock."""
    fields: Mapping[str, Any]
    match sample:
        case Progress():
            fields = sample.to_json()
        case Preparing():
            fields = {"node": sample.node, "preparing": sample.text[:LONGEST_TEXT]}
    stamp = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"at": stamp, **fields})


def load(line: bytes) -> Telemetry:
    """Read a line back; raises ValueError for anything else."""
    match strictjson.loads(line.decode()):
        case {"at": str(), "node": str(node), "preparing": str(text)}:
            return Preparing(node=node, text=text)
        case {"at": str(), **fields}:
            return Progress.from_json(fields)
        case _:
            raise ValueError("no sample of telemetry")
