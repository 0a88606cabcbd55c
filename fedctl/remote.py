"""Every command line that is run on a node, as pure functions that return an argv, and what its end means.

All else goes through the agent that these start. A login shell stands between, so a word holds nothing that one of
them would touch within quotes: no line break, no backslash and no exclamation mark.
"""

import errno
import re
from collections.abc import Sequence

from fedctl.errors import NodeError

OLDEST = (3, 8)
"""The oldest Python that runs the agent."""
ABSENT = 90
"""The exit status that says: this agent is not installed yet."""

_FIND_HOME = (
    'h=${1:-${FEDCTL_HOME:-$HOME/.fedctl}}; case "$h" in "~"/*) h="$HOME${h#"~"}";; esac; export FEDCTL_HOME="$h"; '
)
"""The node's folder for fedctl: as it was asked for, else of the environment, else ~/.fedctl."""
_INSTALL = (
    "import hashlib,os,sys;"
    "h=os.environ['FEDCTL_HOME'];"
    "os.umask(63);"
    "os.makedirs(h,mode=0o700,exist_ok=True);"
    "d=sys.stdin.buffer.read();"
    "s=sys.argv[1];"
    "assert hashlib.sha256(d).hexdigest()==s,'the agent arrived damaged';"
    "p=os.path.join(h,'agent-'+s[:12]+'.py');"
    "t=p+'.tmp-'+str(os.getpid());"
    "f=open(t,'wb');f.write(d);f.flush();os.fsync(f.fileno());f.close();os.rename(t,p)"
)


_SERVE = "import os,sys;os.umask(63);sys.path.insert(0,sys.argv[1]);__import__(sys.argv[2]).main()"
"""As a module the agent is compiled once, and without `site` it meets nothing that was installed: half the time."""


def serve_agent(python: str, digest: str, home: str = "") -> Sequence[str]:
    """Run the agent of that SHA-256; ends with status `ABSENT` where it is not installed."""
    agent = f"agent-{digest[:12]}"
    command = f'test -f "$h/{agent}.py" || exit {ABSENT}; exec "$0" -IS -c "$2" "$h" {agent}'
    return ("sh", "-c", _FIND_HOME + command, python, home, _SERVE)


def install_agent(python: str, digest: str, home: str = "") -> Sequence[str]:
    """Keep what stands on stdin as the agent of that SHA-256, if it is that."""
    return ("sh", "-c", f'{_FIND_HOME}exec "$0" -IS -c "$2" "$3"', python, home, _INSTALL, digest)


def tell_version(python: str) -> Sequence[str]:
    """Have a Python say which one it is, however old."""
    return ("sh", "-c", 'exec "$0" --version', python)


_NUMBERED = re.compile(r"\[Errno (\d+)\] ([^:\n]*)(?:: '([^'\n]*)')?")
_VERSION = re.compile(r"\b(\d+)\.(\d+)(?:\.\d+)?\S*")
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
_MAY_NOT_WRITE = (errno.EACCES, errno.EPERM)
"""Before the agent runs nothing but its own folder is touched."""


def explain(python: str, status: int, noise: str, said: str) -> NodeError | None:
    """Why the agent did not start: its exit status, what came on stdout and on stderr; None where they do not say."""
    if status == 127:
        return NodeError(
            f"there is no `{python}` there", hint="install Python 3.8 or newer there, or name one with `python:`"
        )
    if status == 126:
        return NodeError(f"`{python}` cannot be run there", hint="name another one with `python:`")
    for numbered in _NUMBERED.finditer(said):
        if int(numbered[1]) in (*_CANNOT_WRITE, *_MAY_NOT_WRITE):
            return _cannot_write(numbered)
    if noise:
        return NodeError(
            f"the server ran something else than fedctl's agent: {noise.splitlines()[0]}",
            hint="look for `ForceCommand` in its sshd_config, for `command=` in that account's authorized_keys, and at "
            "its login shell",
        )
    return None


def judge_version(python: str, said: str) -> NodeError | None:
    """The error that a Python is when it is too old, from what it says of its version; None for one that will do."""
    version = _VERSION.search(said)
    if version is None or (int(version[1]), int(version[2])) >= OLDEST:
        return None
    return NodeError(
        f"`{python}` there is Python {version[0]}, and fedctl needs 3.8 or newer",
        hint="install a newer one there, or name one with `python:`",
    )


def judge_refusal(said: str) -> NodeError:
    """The error that an agent's refusal is."""
    numbered = _NUMBERED.search(said)
    return _cannot_write(numbered) if numbered and int(numbered[1]) in _CANNOT_WRITE else NodeError(said)


def _cannot_write(numbered: re.Match[str]) -> NodeError:
    number, reason, path = numbered.groups()
    is_full = int(number) in (errno.ENOSPC, errno.EDQUOT)
    return NodeError(
        f"fedctl cannot keep its files there: {reason[:1].lower()}{reason[1:]}{f' ({path})' if path else ''}",
        hint=("make room there" if is_full else "let that account write there")
        + ", or name another folder with `home:` of that node",
    )
