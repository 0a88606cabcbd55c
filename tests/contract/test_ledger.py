"""A real agent, and whether all that leaves it is in its ledger, before it leaves; else it stays."""

import hashlib
import json
import resource
import sys

import pytest

from fedctl.connection import Connection
from fedctl.errors import NodeError
from fedctl.ledger import Pin
from fedctl.node.agent import LONGEST_NAME, MOST_METRICS, Agent, canonical, examine, failed
from fedctl.records import Blob, Result, Score, TaskKey
from fedctl.statement import statement_of
from fedctl.weights import save
from tests.contract.breaking import Breaking

RUN = {"run": "one", "identity": "aaaa"}
KEY = "r0001/alice/a1"
LOG = b"epoch 1\n" * 100


@pytest.fixture
def transport(tmp_path):
    transport = Breaking(tmp_path / "home")
    yield transport
    for process in transport.opened:
        process.kill()


@pytest.fixture
def connection(transport):
    connection = Connection.open(transport, sys.executable)
    yield connection
    connection.close()


@pytest.fixture
def home(tmp_path, connection):
    """A node on which a task is done, with its update and its log."""
    import torch

    connection.ask("list", **RUN)
    folder = tmp_path / "home/runs/one" / KEY.replace("/", "-")
    folder.mkdir()
    update = save(folder / "update.safetensors", {"weight": torch.ones(300, 300), "bias": torch.zeros(9)})
    result = Result(key=TaskKey.parse(KEY), examples=7, metrics={"loss": 0.5, "bad": float("nan")}, update=update)
    (folder / "result.json").write_text(json.dumps(result.to_json()))
    (folder / "train.log").write_bytes(LOG)
    return tmp_path / "home"


def entries(home):
    return [json.loads(line) for line in (home / "ledger.jsonl").read_text().splitlines()]


def digest(content):
    return hashlib.sha256(content).hexdigest()


def start(connection):
    worker = {"python": sys.executable, "bundle": "0" * 64, "cwd": "/"}
    return connection.ask("start", **RUN, key=KEY, task={"key": KEY, "models": {}}, worker=worker)


def read(connection, name, offset=0, limit=100_000):
    return connection.begin("read", **RUN, key=KEY, name=name, offset=offset, limit=limit)()[1]


def put_result(home, **fields):
    """Give the task another result."""
    path = home / "runs/one" / KEY.replace("/", "-") / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_facts_are_written_down(connection, home):
    facts = connection.facts
    first = entries(home)[0]
    assert first["kind"] == "facts"
    said = {name: value for name, value in connection.ask("hello").items() if name != "re"}
    assert entries(home)[-1]["sha256"] == digest(canonical(said))
    assert facts["hostname"] == said["hostname"]


def test_a_result_is_with_its_metrics_and_its_answer_pins_its_entry(connection, home):
    answer = start(connection)
    last = entries(home)[-1]
    assert Pin.from_json(answer["ledger"]) == Pin(n=last["n"], hash=last["hash"])
    assert (last["kind"], last["run"], last["identity"], last["task"]) == ("result", "one", "aaaa", KEY)
    assert last["sha256"] == digest(canonical(answer["result"]))
    assert last["size"] == len(canonical(answer["result"]))
    assert (last["examples"], last["metrics"]) == (7, {"loss": 0.5, "bad": None})
    assert last["message"] is None
    put_result(home, message={"share": "x" * 50}, scores={"global": Score(examples=1, metrics={"a": 2.0}).to_json()})
    start(connection)
    last = entries(home)[-1]
    said = json.dumps({"share": "x" * 50}).encode()
    assert last["message"] == {"size": len(said), "sha256": digest(said)}, "as the coordinator keeps it"
    assert last["scores"]["global"]["metrics"] == {"a": 2.0}


def test_an_update_is_once_however_many_pieces_it_leaves_in(connection, home):
    content = b""
    while piece := read(connection, "update.safetensors", len(content)):
        content += piece
    (entry,) = [one for one in entries(home) if one["kind"] == "update"]
    assert (entry["offset"], entry["size"], entry["sha256"]) == (0, len(content), digest(content))
    assert entry["tensors"] == {"count": 2, "sha256": digest(b"bias\nweight")}


def test_one_that_leaves_again_or_from_elsewhere_on_is_again(connection, transport, home):
    read(connection, "update.safetensors", 0, 1000)
    read(connection, "update.safetensors", 500, 1000)
    other = Connection.open(transport, sys.executable)
    read(other, "update.safetensors", 1500, 1000)
    read(other, "update.safetensors", 2500, 10)
    assert [one["offset"] for one in entries(home) if one["kind"] == "update"] == [0, 500, 1500]


def test_one_that_is_not_what_its_result_names_stays(connection, home):
    read(connection, "update.safetensors", 0, 1000)
    path = home / "runs/one" / KEY.replace("/", "-") / "update.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + b"other...")
    with pytest.raises(NodeError, match="is not the one that its result names"):
        read(connection, "update.safetensors", 1000, 1000)


def test_names_that_a_packed_update_does_not_show_are_those_of_its_result(connection, home):
    path = home / "runs/one" / KEY.replace("/", "-") / "update.safetensors"
    path.write_bytes(b"packed by a codec")
    put_result(home, update=Blob(digest=digest(path.read_bytes()), size=17).to_json(), tensors=["w", "b"])
    read(connection, "update.safetensors")
    put_result(home, tensors=[])
    read(connection, "update.safetensors")
    named, unnamed = [one["tensors"] for one in entries(home) if one["kind"] == "update"]
    assert named == {"count": 2, "sha256": digest(b"b\nw")}
    assert unnamed is None


def test_each_piece_of_a_log_is(connection, home):
    pieces = [read(connection, "train.log", offset, 500) for offset in (0, 500, 1000)]
    assert b"".join(pieces) == LOG
    found = [(one["offset"], one["size"], one["sha256"]) for one in entries(home) if one["kind"] == "log"]
    assert found == [(0, 500, digest(LOG[:500])), (500, 300, digest(LOG[500:]))], "and none for its end"


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("look", {"paths": ["/etc/passwd"]}),
        ("may", {"when": {"hours": [], "days": [], "command": ["sh", "-c", "echo no; exit 1"]}}),
        ("probe", {"python": sys.executable, "packages": ["torch"]}),
        ("stat", {"digests": ["no digest"]}),
        ("read", {**RUN, "key": KEY, "name": "/etc/passwd"}),
        ("nothing", {}),
    ],
)
def test_what_an_answer_tells_of_the_machine_is_too_and_so_is_every_error(home, op, fields):
    sent = []
    agent = Agent(home, lambda header, _: sent.append((header, entries(home)[-1])))
    agent.answer({"id": 7, "op": op, **fields}, b"")
    ((said, entry),) = sent
    del said["re"]
    assert (entry["kind"], entry["op"], entry["sha256"]) == ("answer", op, digest(canonical(said)))


def test_it_is_written_down_before_it_leaves(home):
    """Whoever sends looks into the ledger at that moment."""
    seen = []

    def send(_, body):
        seen.append(entries(home)[-1])
        if body:
            body.file.close()

    agent = Agent(home, send)
    agent.answer({"id": 1, "op": "hello"}, b"")
    worker = {"python": sys.executable, "bundle": "0" * 64, "cwd": "/"}
    agent.answer({"id": 2, "op": "start", **RUN, "key": KEY, "task": {}, "worker": worker}, b"")
    for name in ("update.safetensors", "train.log"):
        agent.answer({"id": 3, "op": "read", **RUN, "key": KEY, "name": name, "offset": 0, "limit": 9}, b"")
    assert [one["kind"] for one in seen] == ["facts", "result", "update", "log"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metrics": {f"m{number}": 0.0 for number in range(MOST_METRICS + 1)}}, "1001 metrics"),
        ({"metrics": {"m" * (LONGEST_NAME + 1): 0.0}}, "the metric mmmm"),
        ({"scores": {"global": {"examples": 1, "metrics": {"m" * 201: 0.0}}}}, "the metric mmmm"),
        ({"message": {"smuggled": "x" * 2**21}}, "at most 2097152 may leave"),
    ],
)
def test_what_is_larger_than_any_result_has_to_be_stays(connection, home, fields, said):
    put_result(home, **fields)
    answer = start(connection)
    result = Result.from_json(answer["result"])
    assert said in result.error
    assert not result.retryable
    assert result.update is None
    assert entries(home)[-1]["sha256"] == digest(canonical(answer["result"]))


def test_where_the_ledger_takes_nothing_nothing_leaves(connection, transport, home):
    pid = transport.opened[-1].process._process.pid
    ledger = home / "ledger.jsonl"
    before = ledger.read_bytes()
    free = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (len(before) + 30, free[1]))
    for ask in (
        lambda: read(connection, "update.safetensors"),
        lambda: read(connection, "train.log"),
        lambda: connection.ask("hello"),
        lambda: connection.ask("look", paths=["/"]),
        lambda: connection.ask("stat", digests=["x"]),
    ):
        with pytest.raises(NodeError, match=r"what leaves cannot be written down.*File too large"):
            ask()
    answer = start(connection)
    said = failed(KEY, answer["result"]["error"], retryable=True)
    assert answer["result"] == said, "nothing of the task but that"
    assert "what leaves cannot be written down" in said["error"]
    assert answer["ledger"] is None
    assert ledger.read_bytes() == before
    resource.prlimit(pid, resource.RLIMIT_FSIZE, free)
    assert start(connection)["result"]["examples"] == 7
    assert read(connection, "train.log") == LOG
    assert examine(ledger)[1] is None


def test_a_run_is_told_its_own_entries_and_the_head(connection, home):
    answer = start(connection)
    connection.ask("list", run="two", identity="bbbb")
    read(connection, "train.log")
    for is_whole in (False, True):
        statement = statement_of(connection, "aaaa", is_whole=is_whole)
        own = [json.loads(line) for line in statement.lines if line.startswith(b"{")]
        assert [one["kind"] for one in own] == ["result", "log"]
        assert own[0]["hash"] == answer["ledger"]["hash"]
        assert statement.head == Pin(n=entries(home)[-1]["n"], hash=entries(home)[-1]["hash"])
        assert statement.trouble is None
        assert len(statement.lines) == (len(entries(home)) if is_whole else 2)
    assert not statement_of(connection, "bbbb", is_whole=False).lines


def test_it_is_removed_with_all_that_fedctl_made(connection, home):
    start(connection)
    (home / "ledger.jsonl.torn-5").touch()
    connection.ask("remove_all")
    assert not list(home.glob("ledger*"))


def test_what_is_told_line_by_line_is_written_down_when_the_line_ends(tmp_path, transport, connection, home):
    folder = home / "runs/one/r0002-alice-a1"
    folder.mkdir()
    line = json.dumps({"key": "r0002/alice/a1", "phase": "training"})
    (folder / "progress.jsonl").write_text(line + "\n")
    (home / "runs/one/queue/1-r0002-alice-a1").touch()
    (home / "bundle" / ("0" * 64)).mkdir(parents=True)
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o700)
    pushed = []
    connection.listen("r0002/alice/a1", pushed.append)
    worker = {"python": str(sleeper), "bundle": "0" * 64, "cwd": "/"}
    task = {"key": "r0002/alice/a1", "models": {}}
    connection.ask("start", **RUN, key="r0002/alice/a1", task=task, worker=worker)
    while not pushed:
        connection.ask("stat", digests=[])
    transport.opened[-1].close_stdin()
    transport.opened[-1].wait()
    last = entries(home)[-1]
    assert (last["kind"], last["task"], last["lines"]) == ("progress", "r0002/alice/a1", 1)
    assert last["sha256"] == digest(canonical(json.loads(line)) + b"\n")
