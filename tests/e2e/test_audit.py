"""`fedctl audit` after real runs: what arrived is what left, and whoever changes a ledger afterwards is found out."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedctl.node.agent import BEFORE_ALL, CHAINED, chained, entry_lines
from tests.e2e.conftest import Place

NODES = """
nodes:
  - {name: alice, data: {site: 0}}
  - {name: bob, data: {site: 1}}
  - {name: carol, home: HOME, data: {site: 2}}
  - {name: diverging, data: {site: 3}}
"""
"""Carol is on another machine, as far as its ledger goes."""
NODE_KEYS = ["node", "state", "reason", "entries", "bytes", "epsilon", "head", "differences", "remarks"]


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    place = make_place("blank")
    text = (place.folder / "fed.yaml").read_text()
    nodes = "defaults: {accelerator: cpu, threads: 1}" + NODES.replace("HOME", str(carols(place).parent))
    (place.folder / "fed.yaml").write_text(text[: text.index("nodes:")] + nodes)
    place.edit(
        "model.py",
        "        loss = functional.mse_loss(self(rows), targets)\n",
        "        loss = functional.mse_loss(self(rows), targets)\n"
        "        if self.trainer.datamodule.site == 3:\n"
        "            loss = loss * float('nan')\n",
    )
    settings = ("rounds=2", "schedule.quorum=3", "codec.up=[fp16, zstd]")
    place.fedctl("launch", "--run", "r", *(word for setting in settings for word in ("--set", setting)))
    return place


def carols(place: Place) -> Path:
    return place.home.parent / "carols" / "ledger.jsonl"


def ours(place: Place) -> Path:
    return place.home / "ledger.jsonl"


@contextlib.contextmanager
def tampered(path: Path, change: Callable[[list[bytes]], None]) -> Iterator[None]:
    """A ledger whose lines somebody has changed, for a while."""
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    try:
        yield
    finally:
        path.write_bytes(before)


def found(place: Place, *arguments: str, code: int = 6) -> dict[str, tuple[str, ...]]:
    """What does not agree, by the node."""
    nodes = place.json("audit", "r", *arguments, code=code)["nodes"]
    assert [one["state"] for one in nodes] == ["differs" if one["differences"] else "agrees" for one in nodes]
    return {one["node"]: tuple(one["differences"]) for one in nodes if one["differences"]}


def of_carol(lines: list[bytes], kind: str) -> int:
    """Where the first line of that kind about carol's training stands."""
    marks = (f'"kind":"{kind}"'.encode(), b'"task":"r0001/carol/a1"')
    return next(index for index, line in enumerate(lines) if all(mark in line for mark in marks))


@pytest.mark.parametrize("verify", [(), ("--verify",)])
def test_after_a_run_all_agree(place, verify):
    answer = place.json("audit", "r", *verify)
    assert list(answer) == ["run", "verified", "nodes"]
    assert answer["verified"] == bool(verify)
    assert list(answer["nodes"][0]) == NODE_KEYS
    assert {one["node"]: (one["state"], one["differences"]) for one in answer["nodes"]} == {
        name: ("agrees", []) for name in ("alice", "bob", "carol", "diverging")
    }
    received = [event for event in place.events("r") if event["event"] == "UpdateReceived"]
    assert len(received) == 6
    assert all(event["wire"]["size"] != event["update"]["size"] for event in received)
    for one in answer["nodes"][:3]:
        mine = [event for event in received if event["task"].split("/")[1] == one["node"]]
        assert one["bytes"]["update"] == sum(event["wire"]["size"] for event in mine)
        assert one["bytes"]["result"] > 0
        assert one["bytes"]["progress"] > 0
        assert {event["ledger"]["n"] for event in mine} <= set(range(1, one["head"]["n"] + 1))
        assert one["epsilon"] is None


def test_all_that_the_journal_has_is_pinned(place):
    arrived = [event for event in place.events("r") if event["event"] in ("UpdateReceived", "ModelEvaluated")]
    by_number = {
        path: {json.loads(line)["n"]: json.loads(line)["hash"] for line in path.read_text().splitlines()}
        for path in (carols(place), ours(place))
    }
    for event in arrived:
        hashes = by_number[(carols if "/carol/" in event["task"] else ours)(place)]
        assert hashes[event["ledger"]["n"]] == event["ledger"]["hash"]


def test_people_are_told_in_a_table(place):
    said = place.fedctl("audit", "r")
    assert [line.split()[0] for line in said.stdout.splitlines()] == ["NODE", "alice", "bob", "carol", "diverging"]
    assert "the journal of run r and all ledgers agree" in said.stderr


def test_logs_that_were_fetched_are_bytes_that_left(place):
    log = place.json("logs", "bob", "--run", "r")["log"]
    bob = place.json("audit", "r")["nodes"][1]
    assert 0 < bob["bytes"]["log"] <= len(log.encode())


def test_a_metric_that_is_changed_in_a_ledger_is_found(place):
    def change(lines: list[bytes]) -> None:
        index = of_carol(lines, "result")
        lines[index] = lines[index].replace(b'"examples":160', b'"examples":161')

    with tampered(carols(place), change):
        for verify in ((), ("--verify",)):
            (carol,) = found(place, *verify).values()
            assert "the chain of its ledger is broken: entry" in carol[0]
            assert "was changed" in carol[0]
            assert "r0001/carol/a1: its result is not the same in the journal and in the ledger" in carol
        said = place.fedctl("audit", "r", code=6).stderr
        assert "the journal of run r and 1 ledger do not agree" in said


def test_an_entry_that_is_left_out_is_found(place):
    with tampered(carols(place), lambda lines: lines.pop(of_carol(lines, "update"))):
        (carol,) = found(place).values()
        assert "is missing" in carol[0]
        assert "r0001/carol/a1: its update is in the journal and not in the ledger" in carol


def test_a_chain_that_was_written_anew_is_found_by_what_the_journal_pinned(place):
    def change(lines: list[bytes]) -> None:
        index = of_carol(lines, "progress")
        lines[index] = lines[index].replace(b'"lines":', b'"lines":1')
        prev = BEFORE_ALL
        for number, line in enumerate(lines):
            match = CHAINED.search(line)
            assert match
            before, prev = prev, chained(prev, hashlib.sha256(line[: match.start()]).hexdigest())
            lines[number] = line[: match.start()] + f',"prev":"{before}","hash":"{prev}"}}\n'.encode()

    with tampered(carols(place), change):
        for verify in ((), ("--verify",)):
            (carol,) = found(place, *verify).values()
            assert len(carol) == 1
            assert "was rewritten: the journal has it otherwise" in carol[0]


def test_a_ledger_that_is_cut_off_after_the_run_is_found(place):
    with tampered(ours(place), lambda lines: lines.__delitem__(slice(12, None))):
        for one in (found(place), found(place, "--verify")):
            assert one.keys() == {"alice", "bob", "diverging"}
            assert all(any("its ledger was cut off: it ends at" in said for said in one[name]) for name in one)


def test_others_entries_in_a_chain_are_verified_by_their_digests_alone(place):
    place.fedctl("launch", "--run", "other", "--set", "rounds=1", "--set", "schedule.quorum=3")
    place.json("audit", "other", "--verify")
    place.json("audit", "r", "--verify")

    def change(lines: list[bytes]) -> None:
        index = next(index for index, line in enumerate(lines) if b'"run":"other"' in line)
        lines[index] = lines[index].replace(b'"size":', b'"size":1')

    with tampered(ours(place), change):
        assert place.json("audit", "r", "--verify", code=6)["nodes"][2]["state"] == "agrees"
        assert found(place, "--verify").keys() == {"alice", "bob", "diverging"}


def test_a_node_that_cannot_be_asked_is_told_of(place):
    home = carols(place).parent
    home.rename(home.with_name("away"))
    home.write_text("no folder")
    nodes = place.json("audit", "r", code=4)["nodes"]
    assert [one["state"] for one in nodes] == ["agrees", "agrees", "unreachable", "agrees"]
    assert nodes[2]["reason"]
    assert "1 node could not be asked" in place.fedctl("audit", "r", code=4).stderr
    home.unlink()
    home.with_name("away").rename(home)
    place.json("audit", "r")


def test_nodes_that_were_cleaned_are_said_to_be(place):
    place.fedctl("clean", "--nodes")
    assert not carols(place).exists()
    for differences in found(place).values():
        assert differences == (
            "its ledger has nothing of this run: it was removed, as `clean --nodes` does, or begun anew",
        )
    assert list(entry_lines(ours(place))), "but that it was asked for"
