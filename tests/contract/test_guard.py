"""Whatever a coordinator asks of an enrolled node: by name what its owner does not allow, tried on the real program."""

import fcntl
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedctl.connection import Connection
from fedctl.environment import allowed_instead
from fedctl.errors import NodeError
from fedctl.node.agent import Run, Watch
from fedctl.node.owner.approvals import Approvals
from fedctl.node.owner.guard import Guard
from fedctl.node.owner.trainings import Trainings
from fedctl.records import Blob, Result, Task, TaskKey
from fedctl.transfer import put
from tests.contract.owned import enroll

KEY = "r0001/alice/a1"
RUN = {"run": "one", "identity": "aaaa"}
OPEN = f"""
code: any
pythons: [{sys.executable}]
data: {{paths: [/srv/xrays]}}
commands: [/bin/true]
"""
"""A policy that lets code run, so that what it does not let is seen."""


@pytest.fixture
def guarded(tmp_path):
    """A connection to a node of that policy, by a key of that name."""
    connections = []

    def guarded(policy="", name="coordinator"):
        way = enroll(tmp_path, name, policy)
        connections.append(Connection.open(way, sys.executable))
        return connections[-1]

    yield guarded
    for connection in connections:
        connection.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The same, for tests that are refused everything: it has a bundle, and nothing more by the end."""
    folder = tmp_path_factory.mktemp("guarded")
    connection = Connection.open(enroll(folder, policy=OPEN), sys.executable)
    blob, path = bundle(folder, model="class Model: pass\n", data="class Data: pass\n")
    put(connection, blob, path)
    connection.ask("unpack", digest=blob.digest)
    yield connection, blob
    connection.close()


def bundle(tmp_path, **files) -> tuple[Blob, Path]:
    """A bundle whose project has these modules."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"project/{name}.py")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    path = tmp_path / "bundle.tar"
    path.write_bytes(buffer.getvalue())
    return Blob(digest=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size), path


def task(**changes) -> dict:
    plain = {"key": TaskKey.parse(KEY), "seed": 1, "model": "model.py:Model", "data": "data.py:Data"}
    nothing = {"model_args": {}, "data_args": {}, "trainer": {}}
    return {**Task(**plain, **nothing).to_json(), **changes}


def worker(blob, **changes) -> dict:
    plain = {
        "bundle": blob.digest,
        "python": sys.executable,
        "preload": ["torch"],
        "slots": 1,
        "idle_s": 60.0,
        "cwd": "/",
    }
    return {**plain, **changes}


@pytest.fixture
def sent(guarded, tmp_path):
    """A node that has a bundle, and that bundle."""
    connection = guarded(OPEN)
    blob, path = bundle(tmp_path, model="class Model: pass\n", data="class Data: pass\n")
    put(connection, blob, path)
    connection.ask("unpack", digest=blob.digest)
    return connection, blob


def test_an_enrolled_node_says_who_it_is_and_what_it_asks_for(guarded, tmp_path):
    connection = guarded("secure_aggregation: {required: true}\n")
    assert connection.facts["enrolled"] is True
    assert connection.facts["required"] == ["secure_aggregation"]
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "owner" / "identity.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert connection.facts["identity"] == fingerprint
    assert Path(connection.facts["home"]).parent == tmp_path / "home"


@pytest.mark.parametrize("op", ["shell", "__init__", "answer", "run", "", None, 7, ["hello"], "do_hello"])
def test_a_verb_that_is_not_named_does_not_exist(node, op):
    with pytest.raises(NodeError, match="the owner of this node does not allow"):
        node[0].ask(op)


@pytest.mark.parametrize(
    "path", ["/bin/sh", "sh", "python3", f"{sys.executable}/../python3", f"{sys.executable} ", "", None, ["/bin/sh"]]
)
def test_no_program_runs_but_the_pythons_that_the_owner_named(node, path):
    connection, _ = node
    with pytest.raises(NodeError, match=r"the owner of this node does not allow the Python|no name"):
        connection.ask("probe", python=path, packages=["torch"])
    assert connection.ask("probe", python=sys.executable, packages=["torch"])["packages"]["torch"]


def test_a_python_is_asked_of_packages_and_given_no_option(node):
    with pytest.raises(NodeError, match="no name"):
        node[0].ask("probe", python=sys.executable, packages=["-c", "print(1)"])


def test_accelerators_are_looked_at_by_a_python_that_the_owner_named(node):
    connection, _ = node
    with pytest.raises(NodeError, match="does not allow the Python '/bin/sh'"):
        connection.ask("accelerators", python="/bin/sh", wanted=True)
    assert "gpus" in connection.ask("accelerators", wanted=False)


def test_nothing_is_told_of_paths_outside(node):
    found = node[0].ask("look", paths=["/etc/passwd", "/srv/xrays/../../etc/passwd", "/srv/xrays/1", "~/.ssh"])["found"]
    hidden = {"exists": False, "readable": False, "forbidden": True}
    assert found == [hidden, hidden, {"exists": False, "readable": False}, hidden]


def test_no_program_is_asked_whether_the_machine_is_free_but_the_owners(node, tmp_path):
    connection, _ = node
    when = {"hours": [], "days": [], "command": ["/bin/touch", str(tmp_path / "mark")]}
    with pytest.raises(NodeError, match="does not allow the program '/bin/touch'"):
        connection.ask("may", when=when)
    assert connection.ask("may", when={**when, "command": ["/bin/true"]})["may"] is True
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"python": "/bin/sh"}, "does not allow the Python '/bin/sh'"),
        ({"preload": ["antigravity"]}, "does not allow 'antigravity' to be imported"),
        ({"bundle": "0" * 63}, "not a digest|not approved"),
        ({"bundle": "../../../etc"}, "not a digest"),
        ({"python": None, "environment": "../../bin"}, "not a digest|not approved"),
    ],
)
def test_a_worker_is_started_by_what_is_allowed_alone(node, changes, why):
    connection, blob = node
    with pytest.raises(NodeError, match=why):
        connection.ask("worker", **RUN, worker=worker(blob, **changes))
    assert connection.ask("list", **RUN)["worker"] is False


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data_args": {"root": "/etc"}}, "'/etc'"),
        ({"data_args": {"root": "/srv/xrays/../../etc"}}, "/etc"),
        ({"model_args": {"deep": [{"weights": "~/.ssh/id_rsa"}]}}, r"\.ssh"),
        ({"model": "os:system"}, "os:system"),
        ({"local": {"name": "subprocess:Popen", "options": {}}}, "subprocess:Popen"),
        ({"trainer": {"default_root_dir": "here"}}, "default_root_dir"),
        ({"when": {"hours": [], "days": [], "command": ["/bin/sh", "-c", "id"]}}, "/bin/sh"),
        ({"key": "r0002/alice/a1"}, "is called"),
    ],
)
def test_a_task_that_reaches_elsewhere_is_refused_by_name(node, changes, why):
    connection, blob = node
    with pytest.raises(NodeError, match=why):
        connection.ask("start", **RUN, key=KEY, task=task(**changes), worker=worker(blob))
    assert connection.ask("list", **RUN)["tasks"] == {}


@pytest.mark.parametrize(
    "name", ["../../../.ssh/authorized_keys", "owner.json", "task.json", "worker.log", "/etc/passwd"]
)
def test_no_file_is_read_but_the_two_of_a_task(node, name):
    connection, _ = node
    with pytest.raises(NodeError, match=r"not a readable file|no logs leave"):
        connection.ask("read", **RUN, key=KEY, name=name, offset=0, limit=10)


def test_a_log_stays_unless_the_owner_lets_it_leave(node):
    connection, _ = node
    with pytest.raises(NodeError, match="no logs leave"):
        connection.ask("read", **RUN, key=KEY, name="train.log", offset=0, limit=10)


@pytest.mark.parametrize("run", ["../x", "..", "a/b", ".ssh", "/tmp/x", ""])
def test_no_run_has_a_folder_elsewhere(node, run):
    connection, _ = node
    with pytest.raises(NodeError, match="not a run name"):
        connection.ask("list", run=run, identity="bbbb")
    assert {path.name for path in Path(connection.facts["home"]).glob("runs/*")} <= {"one"}


@pytest.mark.parametrize("identity", ["../../x", "a b", "a\nb", "", 7, ["a"]])
def test_an_identity_is_one_word(node, identity):
    with pytest.raises(NodeError, match="not a run's identity"):
        node[0].ask("list", run="one", identity=identity)


def test_a_version_of_python_is_one(node):
    needs = {"bundle": "0" * 64, "environment": {"python": "/../../../tmp/evil", "requirements": "", "wheels": {}}}
    assert "not a version of Python" in node[0].ask("hello", needs=needs)["has"]["error"]


# What waits for the owner


def test_code_is_not_even_unpacked_before_its_owner_has_seen_it(guarded, tmp_path):
    connection = guarded(f"pythons: [{sys.executable}]\n")
    blob, path = bundle(tmp_path, model=f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    put(connection, blob, path)
    declined = connection.ask("unpack", digest=blob.digest)["declined"]
    assert f"fedctl node approve {blob.digest[:12]}" in declined["why"]
    home = Path(connection.facts["home"])
    assert not (home / "bundle" / blob.digest).exists()
    trial = {"bundle": blob.digest, "modules": ["model"], "python": sys.executable}
    assert connection.ask("trial", **trial)["present"] is False
    with pytest.raises(NodeError, match="not approved"):
        connection.ask("worker", **RUN, worker=worker(blob))
    with pytest.raises(NodeError, match="not approved"):
        connection.ask("start", **RUN, key=KEY, task=task(), worker=worker(blob))
    assert not (tmp_path / "ran").exists()

    approvals = Approvals(tmp_path / "owner")
    assert [asked.digest for asked in approvals.pending()] == [blob.digest]
    approvals.approve(blob.digest)
    assert "declined" not in connection.ask("unpack", digest=blob.digest)
    assert (home / "bundle" / blob.digest / "project" / "model.py").exists()
    connection.ask("trial", **trial)
    assert (tmp_path / "ran").exists()


def test_where_nothing_may_be_installed_the_pythons_that_may_be_used_are_told(guarded, tmp_path):
    connection = guarded(f"{OPEN}environments: none\n")
    blob, _ = bundle(tmp_path, model="")
    needs = {"python": "{}.{}".format(*sys.version_info), "requirements": "torch\n", "wheels": {}}
    stand = connection.ask("hello", needs={"bundle": blob.digest, "environment": needs})["has"]
    assert stand["error"].startswith("the owner of this node lets no packages be installed; use ")
    assert allowed_instead(stand) == f"write `python: {sys.executable}` for that node in fed.yaml"


def test_packages_wait_for_the_owner_too_and_are_asked_for_with_the_code(guarded, tmp_path):
    connection = guarded()
    blob, path = bundle(tmp_path, model="")
    needs = {"python": "{}.{}".format(*sys.version_info), "requirements": "torch\n", "wheels": {}}
    awaited = connection.ask("hello", needs={"bundle": blob.digest, "environment": needs})["has"]["awaited"]
    assert [(one["kind"], one["shown"]) for one in awaited] == [("code", False), ("environment", False)]
    put(connection, blob, path)
    connection.ask("unpack", digest=blob.digest)
    waiting = Approvals(tmp_path / "owner").pending()
    assert sorted(asked.kind for asked in waiting) == ["code", "environment"]
    with pytest.raises(NodeError, match="not approved"):
        connection.ask("environment", bundle=blob.digest, identity="aaaa", environment=needs)
    Approvals(tmp_path / "owner").approve(blob.digest)
    connection.ask("unpack", digest=blob.digest)
    declined = connection.ask("environment", bundle=blob.digest, identity="aaaa", environment=needs)["declined"]
    assert "its owner has not approved this environment yet" in declined["why"]
    assert not list((Path(connection.facts["home"]) / "env").glob("*.log"))


def test_an_approval_that_is_withdrawn_counts_no_more(sent, guarded, tmp_path):
    connection, blob = sent
    approving = guarded(f"pythons: [{sys.executable}]\n", "another")
    assert connection.ask("hello", needs={"bundle": blob.digest})["has"]["bundle"] is False, "a policy counts at once"
    with pytest.raises(NodeError, match="not approved"):
        connection.ask("worker", **RUN, worker=worker(blob))
    assert approving.facts["enrolled"]


def test_a_disk_that_is_full_by_the_policy_takes_nothing(guarded, tmp_path):
    connection = guarded("limits: {disk: 256M}\n")
    content = b"\1" * 2**20
    digest = hashlib.sha256(content).hexdigest()
    assert connection.ask("put", content, digest=digest, size=len(content), offset=0)["whole"]
    with pytest.raises(NodeError, match="is no number of bytes"):
        connection.ask("split", digest="1" * 64, size=-(10**15))
    with pytest.raises(NodeError, match="256M of disk"):
        connection.ask("split", digest="1" * 64, size=2**28)


@pytest.mark.parametrize("name", ["worker.log", "worker.lock"])
def test_a_link_in_a_runs_folder_leads_nowhere(sent, tmp_path, name):
    """As code leaves it that may write there, and nowhere else."""
    connection, blob = sent
    connection.ask("list", **RUN)
    target = tmp_path / "authorized_keys"
    target.write_text("the owner's")
    (Path(connection.facts["home"]) / "runs" / "one" / name).symlink_to(target)
    with pytest.raises(NodeError, match="symbolic links"):
        connection.ask("worker", **RUN, worker=worker(blob, preload=[]))
    assert target.read_text() == "the owner's"


def test_a_link_in_a_tasks_folder_brings_nothing_out(guarded, tmp_path):
    connection = guarded(f"{OPEN}leave: {{logs: true}}\n")
    connection.ask("list", **RUN)
    run = Run(Path(connection.facts["home"]) / "runs" / "one")
    run.accept(KEY, task())
    (tmp_path / "secret").write_text("a private key")
    (run.folder(KEY) / "train.log").symlink_to(tmp_path / "secret")
    asked = {"name": "train.log", "offset": 0, "limit": 100}
    with pytest.raises(NodeError, match="symbolic links"):
        connection.ask("read", **RUN, key=KEY, **asked)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train.log").write_text("a private key")
    (run.path / "r0002-alice-a1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NodeError, match="is a link"):
        connection.ask("read", **RUN, key="r0002/alice/a1", **asked)


def test_what_was_spent_counts_though_its_result_was_never_asked_for(guarded, tmp_path):
    connection = guarded(f"{OPEN}differential_privacy: {{modes: [local], epsilon: 8.0}}\n")
    connection.ask("list", **RUN)
    run = Run(Path(connection.facts["home"]) / "runs" / "one")
    run.accept(KEY, task())
    trainings = Trainings(tmp_path / "owner" / "trainings")
    trainings.begin("aaaa", KEY, run.folder(KEY), is_private=True)
    meter = {"noise": 1.0, "rate": 0.5, "steps": 100.0, "epsilon": 7.0, "delta": 1e-5}
    run.finish(KEY, {**Result(key=TaskKey.parse(KEY)).to_json(), "privacy": meter})
    connection.ask("remove", **RUN, digests=[])
    assert trainings.spent() == [[1.0, 0.5, 100.0]]


def test_a_training_whose_worker_died_is_not_begun_again_beside_another_that_spends_of_the_same(tmp_path):
    here = enroll(tmp_path, policy=f"{OPEN}differential_privacy: {{modes: [local], epsilon: 8.0}}\n")
    (key,) = here.place.enrolled()
    guard = Guard(here.place, key, lambda header, body: None)
    died, other = Run.claim(key.home, "one", "aaaa"), Run.claim(key.home, "two", "bbbb")
    told = task(privacy={"epsilon": 4.0})
    blob, _ = bundle(tmp_path, model="class Model: pass\n", data="class Data: pass\n")
    for run, identity in ((died, "aaaa"), (other, "bbbb")):
        assert guard.trainings.begin(identity, KEY, run.folder(KEY), is_private=True) is None
        run.accept(KEY, told)
    with (other.folder(KEY) / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        push = guard.begin(died, KEY, Watch(told, worker(blob)))
    assert push["push"] == "result"
    assert push["result"]["ask_again_s"] == 0.0, "it costs no attempt"
    assert "another training that counts against the same ε is at work" in push["result"]["error"]
    assert not (died.folder(KEY) / "result.json").exists(), "it can be begun later"
    push = guard.begin(died, KEY, Watch(told, worker(blob)))
    assert push["push"] == "missing", "nothing else keeps it: it asks for its code now"


def test_outside_of_the_owners_hours_a_task_waits(guarded, tmp_path):
    hour = time.localtime().tm_hour
    connection = guarded(f'{OPEN}hours: ["{(hour + 2) % 24:02d}:00-{(hour + 3) % 24:02d}:00"]\n')
    blob, path = bundle(tmp_path, model="", data="")
    put(connection, blob, path)
    connection.ask("unpack", digest=blob.digest)
    for answer in (
        connection.ask("worker", **RUN, worker=worker(blob)),
        connection.ask("start", **RUN, key=KEY, task=task(), worker=worker(blob)),
    ):
        assert "outside its owner's hours" in answer["declined"]["why"]
        assert 0 < answer["declined"]["seconds"] <= 2 * 3600


# What leaves


def test_what_may_not_leave_stays_whoever_made_it(guarded, tmp_path):
    """As code would leave it there that knows no bounds: the guard looks at the file itself."""
    connection = guarded(f"{OPEN}leave: {{tensors: {{except: [secret]}}, metrics: [val_loss]}}\n")
    blob, path = bundle(tmp_path, model="", data="")
    put(connection, blob, path)
    connection.ask("unpack", digest=blob.digest)
    run = Run.claim(Path(connection.facts["home"]), "one", "aaaa")
    for key, name in ((KEY, "open"), ("r0002/alice/a1", "secret")):
        run.accept(key, task(key=key))
        save_file({name: torch.ones(2)}, run.folder(key) / "update.safetensors")
        done = Result(key=TaskKey.parse(key), metrics={"val_loss": 1.0, "row_17": 2.0}, detail="row 17 is ill")
        run.finish(key, {**done.to_json(), "tensors": ["open"]})
    asked = {**RUN, "worker": worker(blob)}
    told = connection.ask("start", **asked, key=KEY, task=task())["result"]
    assert told["metrics"] == {"val_loss": 1.0}
    assert told["detail"] == ""
    assert told["error"] is None
    piece = {"name": "update.safetensors", "offset": 0, "limit": 1000}
    assert connection.ask("read", **RUN, key=KEY, **piece)["size"] > 0
    told = connection.ask("start", **asked, key="r0002/alice/a1", task=task(key="r0002/alice/a1"))["result"]
    assert "does not let tensor 'secret' leave" in told["error"]
    with pytest.raises(NodeError, match="does not let tensor 'secret' leave"):
        connection.ask("read", **RUN, key="r0002/alice/a1", **piece)
    ledger = (tmp_path / "owner" / "ledger.jsonl").read_text()
    assert "row_17" not in ledger
    assert [json.loads(line)["task"] for line in ledger.splitlines() if '"update"' in line] == [KEY]


def test_rounds_are_counted_by_the_owner_and_not_by_who_asks(guarded, tmp_path):
    connection = guarded(f"{OPEN}rounds: 1\n")
    blob, path = bundle(tmp_path, model="", data="")
    put(connection, blob, path)
    connection.ask("unpack", digest=blob.digest)
    for identity in ("aaaa", "bbbb"):
        asked = {"run": "one", "identity": identity, "key": KEY, "task": task(), "worker": worker(blob)}
        if identity == "aaaa":
            assert connection.ask("start", **asked)["state"] == "started"
            connection.ask("remove", run="one", identity="aaaa", digests=[])
        else:
            put(connection, blob, path)
            connection.ask("unpack", digest=blob.digest)
            with pytest.raises(NodeError, match="allows 1 training in all"):
                connection.ask("start", **asked)


# Keys among themselves


def test_keys_do_not_see_each_other(guarded):
    first, second = guarded(OPEN, "first"), guarded(OPEN, "second")
    content = b"a model"
    digest = hashlib.sha256(content).hexdigest()
    first.ask("put", content, digest=digest, size=len(content), offset=0)
    first.ask("list", **RUN)
    assert second.ask("stat", digests=[digest])["blobs"][digest]["whole"] is False
    assert second.ask("list", **RUN)["tasks"] == {}
    for op, fields in (
        ("remove", {**RUN, "digests": [digest]}),
        ("stop_all", {"identities": ["aaaa"], "force": True}),
        ("remove_all", {}),
    ):
        second.ask(op, **fields)
    assert first.ask("stat", digests=[digest])["blobs"][digest]["whole"] is True
    assert (Path(first.facts["home"]) / "runs" / "one").is_dir()


def test_a_key_removes_its_own_files_and_nothing_of_the_owners(sent, tmp_path):
    connection, _ = sent
    before = {path: path.read_bytes() for path in (tmp_path / "owner").rglob("*") if path.is_file()}
    connection.ask("remove_all")
    kept = {path: path.read_bytes() for path in before if path.exists()}
    ledger = tmp_path / "owner" / "ledger.jsonl"
    assert kept.keys() == before.keys()
    assert kept.pop(ledger).startswith(before.pop(ledger))
    assert kept == before


def test_a_record_that_is_gone_ends_the_line_to_its_key(guarded, tmp_path):
    connection = guarded()
    for path in (tmp_path / "owner" / "keys").iterdir():
        path.unlink()
    with pytest.raises(NodeError, match="this key was revoked"):
        connection.ask("stat", digests=[])


def test_a_policy_that_is_broken_allows_nothing(tmp_path):
    way = enroll(tmp_path, policy=OPEN)
    connection = Connection.open(way, sys.executable)
    (tmp_path / "owner" / "policy.yaml").write_text("code: sometimes\n")
    with pytest.raises(NodeError, match="its owner has to mend it"):
        connection.ask("probe", python=sys.executable, packages=[])
    connection.close()
    with pytest.raises(NodeError, match="code: should be approve or any"):
        Connection.open(way, sys.executable)


# Files


def test_all_that_is_made_is_the_accounts_alone(sent, tmp_path):
    connection, blob = sent
    connection.ask("worker", **RUN, worker=worker(blob))
    connection.ask("stop", **RUN)
    for path in [*(tmp_path / "owner").rglob("*"), *Path(connection.facts["home"]).rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o077, (path, oct(mode))


def test_the_owners_words_stand_beside_a_task_before_it_is_begun(sent):
    connection, blob = sent
    connection.ask("start", **RUN, key=KEY, task=task(), worker=worker(blob))
    file = Path(connection.facts["home"]) / "runs" / "one" / "r0001-alice-a1" / "owner.json"
    words = json.loads(file.read_text())
    assert words.keys() == {"identity", "peers", "least", "required", "epsilon", "delta", "spent", "network"}
    assert Path(words["identity"]).read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    connection.ask("stop", **RUN)


@pytest.fixture(autouse=True)
def everybody_may_read():
    """The tests' own umask: what is closed is closed by us."""
    before = os.umask(0)
    yield
    os.umask(before)
