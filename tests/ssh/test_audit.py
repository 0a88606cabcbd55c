"""The ledger of a node whose owner enrolled the coordinator's key: what the owner reads is what the coordinator got."""

import pytest

from tests.bed import LoopbackBed
from tests.ssh.conftest import SshPlace
from tests.ssh.owner import POLICY, Owner, bring_up


@pytest.fixture(scope="module")
def place(make_place, tmp_path_factory):
    """A run on two servers; on alice's an owner rules, and bob's is anybody's."""
    with LoopbackBed(tmp_path_factory.mktemp("audit") / "bed") as bed:
        alice = bring_up(bed, "alice")
        alice.enroll(bed.key, policy=f"{POLICY}code: any\n")
        bed.add("bob")
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        place.put_on_bed("alice", "bob")
        place.fedctl("launch", "--run", "r", "--set", "rounds=2")
        yield place


@pytest.fixture
def owner(place) -> Owner:
    return Owner(place.bed.nodes["alice"], place.bed.folder / "alice.authorized_keys")


def entries(owner: Owner) -> list[dict]:
    return owner.json("ledger", "--run", "r")["entries"]


def test_all_agree_and_the_owners_chain_holds(place, owner):
    assert [one["state"] for one in place.json("audit", "r", "--verify")["nodes"]] == ["agrees", "agrees"]
    said = owner.json("ledger", "--verify")
    assert said["trouble"] is None
    assert said["head"]["n"] == len(said["entries"])
    assert "the chain holds up to entry" in owner.node("ledger", "--verify").stdout


def test_the_owner_reads_every_update_that_arrived_and_to_which_key_it_left(place, owner):
    arrived = [event for event in place.events("r") if event["event"] == "UpdateReceived"]
    mine = {event["update"]["digest"] for event in arrived if event["task"].split("/")[1] == "alice"}
    assert len(mine) == 2
    assert {one["sha256"] for one in entries(owner) if one["kind"] == "update"} == mine
    (key,) = owner.json("show")["keys"]
    assert {one["to"] for one in entries(owner)} == {key["fingerprint"]}
    scored = [one["scores"]["global"]["metrics"] for one in entries(owner) if one.get("scores")]
    events = [event for event in place.events("r") if event["event"] == "ModelEvaluated"]
    assert scored == [e["scores"]["global"]["metrics"] for e in events if e["task"].split("/")[1] == "alice"]


def test_what_the_owner_changes_afterwards_is_found_by_the_coordinator(place, owner):
    ledger = owner.folder / "ledger.jsonl"
    before = ledger.read_text()
    ledger.write_text(before.replace('"examples":160', '"examples":16', 1))
    nodes = place.json("audit", "r", code=6)["nodes"]
    assert [one["state"] for one in nodes] == ["differs", "agrees"]
    assert "THE CHAIN IS BROKEN" in owner.node("ledger", "--verify", code=7).stdout
    ledger.write_text(before)
    place.json("audit", "r")


def test_a_server_that_is_away_is_told_of(place):
    place.bed.nodes["bob"].stop()
    nodes = place.json("audit", "r", code=4)["nodes"]
    assert [one["state"] for one in nodes] == ["agrees", "unreachable"]
    place.bed.nodes["bob"].start()
