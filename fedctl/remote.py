"""Every command line that is run on a node, as pure functions that return an argv.

All else goes through the agent that these start. A command may pass through a shell on its way, so nothing here holds
a word that a shell would touch, but for the one script that is meant for it.
"""

from collections.abc import Sequence

ABSENT = 90
"""The exit status that says: this agent is not installed yet."""

_HOME = '"${FEDCTL_HOME:-$HOME/.fedctl}"'
_INSTALL = (
    "import hashlib,os,sys;"
    "h=os.environ.get('FEDCTL_HOME') or os.path.join(os.path.expanduser('~'),'.fedctl');"
    "os.makedirs(h,mode=0o700,exist_ok=True);"
    "d=sys.stdin.buffer.read();"
    "s=sys.argv[1];"
    "assert hashlib.sha256(d).hexdigest()==s,'the agent arrived damaged';"
    "p=os.path.join(h,'agent-'+s[:12]+'.py');"
    "t=p+'.tmp-'+str(os.getpid());"
    "f=open(t,'wb');f.write(d);f.flush();os.fsync(f.fileno());f.close();os.rename(t,p)"
)


def serve_agent(python: str, digest: str) -> Sequence[str]:
    """Run the agent of that SHA-256; ends with status `ABSENT` where it is not installed."""
    agent = f"{_HOME}/agent-{digest[:12]}.py"
    return ("sh", "-c", f'test -f {agent} || exit {ABSENT}; exec "$0" -I {agent} serve', python)


def install_agent(python: str, digest: str) -> Sequence[str]:
    """Keep what stands on stdin as the agent of that SHA-256, if it is that."""
    return (python, "-I", "-c", _INSTALL, digest)
