"""What sshd runs for an enrolled key: `python -I -S serve.py SHA256:...`, from the program in the owner's folder."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

AGENT = re.compile(r"\bagent-[0-9a-f]{12}\b")
HARMFUL = ("LD_PRELOAD", "LD_AUDIT", "BASH_ENV", "ENV")
"""What an sshd that takes variables from its clients must not have brought here; PYTHON... are among them."""


def main(program: Path, fingerprint: str) -> int:
    """Serve the one line that this process was started for; ends with a sentence where the key may not have one.

    The program's folder stands in the owner's.
    """
    os.umask(0o077)
    sys.path.insert(0, str(program))
    from fedctl.node.agent import serve
    from fedctl.node.owner.current import policy_of
    from fedctl.node.owner.errors import OwnerError
    from fedctl.node.owner.guard import Guard
    from fedctl.node.owner.marks import marked
    from fedctl.node.owner.place import Place

    place, key, why = Place(program.parent), None, ""
    try:
        key = place.find(fingerprint)
        policy_of(place.policy)
    except OwnerError as error:
        why = error.message.splitlines()[0]
    if not AGENT.search(os.environ.get("SSH_ORIGINAL_COMMAND", "")):
        why = "this key may speak to fedctl's agent, and nothing else: no shell, files or forwarding"
    if key is None or why:
        sys.stderr.write(f"fedctl: {why or 'this key was revoked by the owner of this node'}\n")
        return 1
    for name in [name for name in os.environ if name in HARMFUL or name.startswith("PYTHON")]:
        del os.environ[name]
    with marked(place, key.fingerprint):
        try:
            serve(lambda send: Guard(place, key, send))
        except (BrokenPipeError, ValueError):  # the coordinator has gone, or was none
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).absolute().parent, sys.argv[1]))
