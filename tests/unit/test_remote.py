import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from fedctl import remote

DIGEST = "0123456789abcdef" * 4


COMMANDS = {
    "serve": remote.serve_agent("/opt/ml env/bin/python", DIGEST, "~/else where"),
    "install": remote.install_agent("/opt/ml env/bin/python", DIGEST, "~/else where"),
}
SHELLS = [shell for shell in ("sh", "bash", "dash", "zsh", "ksh", "csh", "tcsh", "fish") if shutil.which(shell)]


@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_no_word_holds_what_any_login_shell_touches_within_quotes(argv):
    assert not set("".join(argv)) & set("\n\\!"), "csh and fish read these within single quotes too"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_words_pass_through_a_login_shell(argv, shell):
    show = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *argv]
    assert json.loads(run([shell, "-c", shlex.join(show)], {**os.environ}).stdout) == list(argv)


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "FEDCTL_HOME": f"{tmp_path}/a home"}


def run(argv, environment, stdin=b""):
    return subprocess.run(argv, input=stdin, env=environment, capture_output=True, timeout=30)


def test_what_is_not_installed_says_so(environment):
    assert run(remote.serve_agent(sys.executable, DIGEST), environment).returncode == remote.ABSENT


def test_what_is_installed_runs(environment, tmp_path):
    source = b"import sys\ndef main(): print(__name__, sys.flags.isolated, 'site' in sys.modules)\n"
    digest = hashlib.sha256(source).hexdigest()
    assert run(remote.install_agent(sys.executable, digest), environment, source).returncode == 0
    for _ in range(2):
        done = run(remote.serve_agent(sys.executable, digest), environment)
        assert (done.returncode, done.stdout) == (0, f"agent-{digest[:12]} 1 False\n".encode())
    assert {path.name for path in (tmp_path / "a home").iterdir()} == {f"agent-{digest[:12]}.py", "__pycache__"}


def test_what_arrives_damaged_is_not_installed(environment, tmp_path):
    done = run(remote.install_agent(sys.executable, DIGEST), environment, b"something else")
    assert done.returncode != 0
    assert b"arrived damaged" in done.stderr
    assert not list((tmp_path / "a home").iterdir())


@pytest.mark.parametrize(
    ("asked", "kept"),
    [("", "a home"), ("~/below it", "user/below it"), ("~/it's $HOME", "user/it's $HOME"), ("{}/apart", "apart")],
)
def test_files_go_where_the_node_keeps_them(environment, tmp_path, asked, kept):
    source = b"import os\ndef main(): print(os.environ['FEDCTL_HOME'])"
    digest, home = hashlib.sha256(source).hexdigest(), asked.format(tmp_path)
    environment["HOME"] = f"{tmp_path}/user"
    assert run(remote.install_agent(sys.executable, digest, home), environment, source).returncode == 0
    assert (tmp_path / kept / f"agent-{digest[:12]}.py").read_bytes() == source
    assert (tmp_path / kept).stat().st_mode & 0o777 == 0o700
    assert run(remote.serve_agent(sys.executable, digest, home), environment).stdout == f"{tmp_path}/{kept}\n".encode()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/srv/fed'", "permission denied (/srv/fed)"),
        ("OSError: [Errno 30] Read-only file system: '/srv/fed'", "read-only file system (/srv/fed)"),
        ("OSError: [Errno 28] No space left on device", "no space left on device"),
        ("OSError: [Errno 122] Disk quota exceeded", "disk quota exceeded"),
        ("PermissionError: [Errno 1] Operation not permitted: '/srv'", "operation not permitted (/srv)"),
        ("banner: [Errno 2] no such thing\nOSError: [Errno 28] No space left on device", "no space left on device"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told(said, reason):
    error = remote.explain("python3", 1, "", said)
    assert error.message == f"fedctl cannot keep its files there: {reason}"
    assert "`home:`" in error.hint


@pytest.mark.parametrize(
    "said",
    [
        "FileNotFoundError: [Errno 2] No such file or directory: '/usr/lib/python3.9/encodings'",
        "OSError: [Errno 12] Cannot allocate memory",
        "bash: warning: setlocale: LC_ALL: cannot change locale",
    ],
)
def test_any_other_error_is_left_to_its_own_words(said):
    assert remote.explain("python3", 1, "", said) is None
