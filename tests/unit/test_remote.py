import hashlib
import os
import subprocess
import sys

import pytest

from fedctl import remote

DIGEST = "0123456789abcdef" * 4


def test_the_agent_is_served_by_its_hash():
    assert remote.serve_agent("/opt/ml env/bin/python", DIGEST) == (
        "sh",
        "-c",
        (
            'test -f "${FEDCTL_HOME:-$HOME/.fedctl}"/agent-0123456789ab.py || exit 90; '
            'exec "$0" -I "${FEDCTL_HOME:-$HOME/.fedctl}"/agent-0123456789ab.py serve'
        ),
        "/opt/ml env/bin/python",
    )


def test_the_agent_is_installed_with_its_hash():
    program, isolated, flag, code, digest = remote.install_agent("python3", DIGEST)
    assert (program, isolated, flag, digest) == ("python3", "-I", "-c", DIGEST)
    assert not set(code) & set('"$`\\!\n'), "a shell between here and there would touch it"


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "FEDCTL_HOME": f"{tmp_path}/a home"}


def run(argv, environment, stdin=b""):
    return subprocess.run(argv, input=stdin, env=environment, capture_output=True, timeout=30)


def test_what_is_not_installed_says_so(environment):
    assert run(remote.serve_agent(sys.executable, DIGEST), environment).returncode == remote.ABSENT


def test_what_is_installed_runs(environment, tmp_path):
    source = b"import sys; print(sys.argv[1:], sys.flags.isolated)"
    digest = hashlib.sha256(source).hexdigest()
    assert run(remote.install_agent(sys.executable, digest), environment, source).returncode == 0
    done = run(remote.serve_agent(sys.executable, digest), environment)
    assert (done.returncode, done.stdout) == (0, b"['serve'] 1\n")
    assert [path.name for path in (tmp_path / "a home").iterdir()] == [f"agent-{digest[:12]}.py"]


def test_what_arrives_damaged_is_not_installed(environment, tmp_path):
    done = run(remote.install_agent(sys.executable, DIGEST), environment, b"something else")
    assert done.returncode != 0
    assert b"arrived damaged" in done.stderr
    assert not list((tmp_path / "a home").iterdir())
