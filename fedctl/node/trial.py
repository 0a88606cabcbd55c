"""A trial on a node, for `fedctl check`: can this Python import the user's code? Trains nothing and writes nothing."""

import importlib
import json
import os
from collections.abc import Sequence

from fedctl.node.task import explain


def main(modules: Sequence[str]) -> None:
    """Import these modules, and print one line of JSON: what went wrong, or null."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what the user's code prints while it is imported is no part of the answer
    failure = None
    try:
        for module in modules:
            importlib.import_module(module)
    except (KeyboardInterrupt, SystemExit, Exception) as raised:
        failure = explain(raised)
    os.write(answer, json.dumps({"failure": failure}).encode())
