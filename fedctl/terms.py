"""What all nodes of a round with masked updates are to be told alike, as a digest that their masks are made of.

Pure. A coordinator could give one node its training, and all others a range, a model or a learning rate by which their
updates come to nothing: the sum would be that one's update. Two nodes that were not told the same make different masks
of their pair, and these do not come off any sum.
"""

import hashlib
import json

from fedctl.records import Task

_ALIKE = (
    "model",
    "model_args",
    "data",
    "models",
    "codec",
    "callbacks",
    "local",
    "share",
    "reset_optimizer",
    "first_seed",
)
_OWN = ("accelerator", "devices")
"""Of the trainer's arguments, those that each node has of its own."""


def terms_of(task: Task, bundle: str) -> bytes:
    """SHA-256 over what a training is to have in common with all others of its round, and the code's digest.

    Each node has data, a seed, a machine and a time of its own.
    """
    told = task.to_json()
    alike = {
        **{name: told[name] for name in _ALIKE},
        "round": task.key.round,
        "bundle": bundle,
        "trainer": {name: value for name, value in told["trainer"].items() if name not in _OWN},
        "privacy": {name: value for name, value in told["privacy"].items() if name != "history"},
        "row": [told["message"].get(name) for name in ("ranges", "most")],
    }
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).digest()
