"""The egress ledger: an append-only chain that many processes write to, and in which nothing can be changed."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from fedctl.node import agent
from fedctl.node.agent import BEFORE_ALL, Ledger, Refused, examine
from fedctl.node.owner.ledger import show

ENTRY = {"kind": "log", "identity": "aaaa"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def written(path, count=9):
    ledger = Ledger(path)
    for number in range(count):
        ledger.append({**ENTRY, "size": number})
    return path.read_bytes().splitlines(keepends=True)


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestChain:
    def test_a_hash_is_of_the_one_before_and_of_the_digest_of_the_entrys_own_words(self, path):
        prev = BEFORE_ALL
        for line in written(path):
            words, _, _ = line.decode().rpartition(',"prev":')
            digest = hashlib.sha256(words.encode()).hexdigest()
            found = json.loads(line)
            assert found["prev"] == prev
            prev = hashlib.sha256((prev + digest).encode()).hexdigest()
            assert found["hash"] == prev

    def test_entries_are_numbered_and_the_last_one_is_told(self, path):
        ledger = Ledger(path, to="SHA256:abc")
        assert ledger.append(ENTRY)["n"] == 1
        last = ledger.append(ENTRY, {"kind": "result"})
        found = entries(path)
        assert [one["n"] for one in found] == [1, 2, 3]
        assert last == {"n": 3, "hash": found[-1]["hash"]}
        assert {one["to"] for one in found} == {"SHA256:abc"}
        assert path.stat().st_mode & 0o777 == 0o600

    def test_another_one_goes_on_with_the_same_chain(self, path):
        one, other = Ledger(path), Ledger(path)
        numbers = [ledger.append(ENTRY)["n"] for ledger in (one, other, other, one, other)]
        assert numbers == [1, 2, 3, 4, 5]
        assert examine(path) == ({"n": 5, "hash": entries(path)[-1]["hash"]}, None)

    def test_an_entry_longer_than_what_is_looked_at_first_is_found_again(self, path):
        Ledger(path).append({**ENTRY, "metrics": {f"m{number}": 0.5 for number in range(30_000)}})
        assert path.stat().st_size > 4 * agent.AHEAD
        assert Ledger(path).append(ENTRY)["n"] == 2
        assert examine(path)[1] is None

    def test_many_processes_write_one_chain(self, path):
        code = (
            "import sys; from pathlib import Path; from fedctl.node.agent import Ledger\n"
            "ledger = Ledger(Path(sys.argv[1]))\n"
            "sys.stdin.read(1)\n"
            "for number in range(200): ledger.append({'kind': 'log', 'by': sys.argv[2], 'size': number})\n"
        )
        writers = [
            subprocess.Popen([sys.executable, "-c", code, str(path), str(name)], stdin=subprocess.PIPE)
            for name in range(6)
        ]
        for writer in writers:
            writer.stdin.write(b"!")
            writer.stdin.close()
        assert [writer.wait() for writer in writers] == [0] * 6
        found = entries(path)
        assert [one["n"] for one in found] == list(range(1, 1201))
        for name in range(6):
            assert [one["size"] for one in found if one["by"] == str(name)] == list(range(200))
        assert examine(path)[1] is None

    def test_one_that_is_removed_meanwhile_is_begun_anew(self, path):
        ledger = Ledger(path)
        ledger.append(ENTRY)
        path.unlink()
        assert ledger.append(ENTRY)["n"] == 1
        assert examine(path)[1] is None

    def test_nothing_is_no_chain_and_not_wrong(self, path):
        assert examine(path) == (None, None)


class TestLossOfPower:
    @pytest.mark.parametrize("torn", [b'{"n":10,"at":"2026', b"\0" * 300, b"\0\0\n\0\n", b'{"n":10,"kind":"log"}\n'])
    def test_a_torn_end_is_kept_aside_and_the_chain_goes_on_and_says_so(self, path, torn):
        lines = written(path)
        path.write_bytes(b"".join(lines) + torn)
        assert Ledger(path).append(ENTRY)["n"] == 11
        note = entries(path)[9]
        assert (note["kind"], note["size"], note["sha256"]) == ("torn", len(torn), hashlib.sha256(torn).hexdigest())
        assert (path.parent / note["kept"]).read_bytes() == torn
        assert (path.parent / note["kept"]).stat().st_mode & 0o777 == 0o600
        assert examine(path)[1] is None
        assert path.read_bytes().startswith(b"".join(lines))

    def test_an_end_that_is_cut_within_an_entry_loses_that_one_alone(self, path):
        lines = written(path)
        path.write_bytes(b"".join(lines)[:-20])
        assert Ledger(path).append(ENTRY)["n"] == 10
        assert [one["kind"] for one in entries(path)][-2:] == ["torn", "log"]

    def test_nothing_but_garbage_is_kept_aside_too(self, path):
        path.write_bytes(b"garbage")
        assert Ledger(path).append(ENTRY)["n"] == 2
        assert entries(path)[0]["kind"] == "torn"

    def test_a_durable_one_is_on_the_disk_before_what_it_tells_of_leaves(self, path, monkeypatch):
        synced = []
        monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
        Ledger(path, is_durable=True).append(ENTRY, ENTRY)
        assert path.stat().st_size in synced
        synced.clear()
        Ledger(path).append(ENTRY)
        assert not synced


def changed(lines):
    lines[4] = lines[4].replace(b'"size":4', b'"size":5')


def rehashed(lines):
    """Changed, with a hash that is right for it."""
    changed(lines)
    match = agent.CHAINED.search(lines[4])
    digest = hashlib.sha256(lines[4][: match.start()]).hexdigest()
    lines[4] = lines[4].replace(match[2], agent.chained(match[1].decode(), digest).encode())


def deleted(lines):
    del lines[4]


def several_deleted(lines):
    del lines[2:6]


def reordered(lines):
    lines[3], lines[4] = lines[4], lines[3]


def repeated(lines):
    lines.insert(5, lines[4])


def scribbled(lines):
    lines[4] = b"nothing\n"


def beheaded(lines):
    del lines[0]


class TestTampering:
    @pytest.mark.parametrize(
        ("tamper", "said"),
        [
            (changed, "entry 5 was changed"),
            (rehashed, "entry 6 does not lead on from entry 5"),
            (deleted, "entry 5 is missing"),
            (several_deleted, "entry 3 is missing, and all up to 6"),
            (reordered, "entry 4 is missing"),
            (repeated, "entry 5 stands behind entry 5"),
            (scribbled, "the line after entry 4 is no entry"),
            (beheaded, "entry 1 is missing"),
        ],
    )
    def test_is_found_and_named_here_and_by_the_owner(self, path, tamper, said, capsys):
        lines = written(path)
        tamper(lines)
        path.write_bytes(b"".join(lines))
        assert examine(path)[1] == said
        assert show(path.parent, verify=True) == 7
        assert f"THE CHAIN IS BROKEN: {said}" in capsys.readouterr().out
        assert show(path.parent, verify=True, as_json=True) == 7
        assert json.loads(capsys.readouterr().out)["trouble"] == said

    def test_what_was_changed_stays_found_whatever_comes_after(self, path):
        lines = written(path)
        changed(lines)
        path.write_bytes(b"".join(lines))
        Ledger(path).append(ENTRY)
        assert examine(path)[1] == "entry 5 was changed"


class TestFullDisk:
    def test_what_cannot_be_written_down_is_refused_and_leaves_the_chain_whole(self, path, monkeypatch):
        before = b"".join(written(path))
        ledger = Ledger(path)
        full = os.open("/dev/full", os.O_WRONLY)

        def fill(descriptor, *pieces):
            os.write(descriptor, pieces[0][:30])
            os.writev(full, pieces)

        with monkeypatch.context() as patched:
            patched.setattr(agent, "write_all", fill)
            with pytest.raises(Refused, match=r"what leaves cannot be written down: OSError: .*No space left"):
                ledger.append(ENTRY)
        os.close(full)
        assert path.read_bytes() == before
        assert ledger.append(ENTRY)["n"] == 10

    def test_neither_is_what_cannot_be_synced(self, path, monkeypatch):
        ledger = Ledger(path, is_durable=True)
        ledger.append(ENTRY)
        before = path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
            with pytest.raises(Refused, match="No space left"):
                ledger.append(ENTRY)
        assert path.read_bytes() == before


class TestPages:
    def test_a_run_sees_its_own_entries_and_of_the_whole_chain_the_others_digests(self, path, monkeypatch):
        monkeypatch.setattr(agent, "PAGE", 1000)
        ledger = Ledger(path)
        for number in range(40):
            ledger.append({"kind": "log", "identity": "bbbb" if number % 3 else "aaaa", "name": '"identity":"aaaa",'})
        lines = path.read_bytes().splitlines(keepends=True)
        own = lines[::3]
        for is_whole in (False, True):
            pages, offset = [], 0
            while offset is not None:
                page, offset = ledger.page("aaaa", offset, is_whole=is_whole)
                pages.append(page)
            assert len(pages) > 3
            came = b"".join(pages).splitlines(keepends=True)
            assert [line for line in came if line in own] == own
            assert len(came) == (40 if is_whole else len(own))
            assert all(agent.DIGEST.match(line.decode().strip()) for line in came if line not in own)

    def test_a_key_sees_nothing_of_what_left_to_another(self, path):
        ours, theirs = Ledger(path, to="SHA256:a"), Ledger(path, to="SHA256:b")
        ours.append(ENTRY)
        theirs.append(ENTRY)
        first, second = path.read_bytes().splitlines(keepends=True)
        assert ours.page("aaaa", 0, is_whole=False) == (first, None)
        assert theirs.page("aaaa", 0, is_whole=False) == (second, None)


class TestOwner:
    def test_the_owner_reads_it_by_run(self, path, capsys):
        ledger = Ledger(path, to="SHA256:abc")
        ledger.append(
            {
                "kind": "update",
                "run": "one",
                "identity": "aaaa",
                "task": "r0001/alice/a1",
                "offset": 10,
                "size": 1234,
                "tensors": {"count": 3, "sha256": "0" * 64},
                "code": "c" * 64,
                "privacy": {"epsilon": 1.5},
            },
            {
                "kind": "result",
                "run": "two",
                "task": "r0001/b/e1",
                "size": 7,
                "scores": {"global": {"metrics": {"a": 1}}},
            },
            {"kind": "log", "run": "one\x1b[2J", "identity": "bbbb", "task": "x", "size": 5},
        )
        assert show(path.parent) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "3 tensors, code cccccccccccc, epsilon 1.5, to SHA256:abc" in out
        assert "global/a 1" in out
        assert "3 entries: log 5 bytes, result 7 bytes, update 1,224 bytes" in out
        assert show(path.parent, "one", verify=True) == 0
        out = capsys.readouterr().out
        assert "1 entries: update" in out
        assert entries(path)[-1]["hash"] in out
        assert show(path.parent, "bbbb", as_json=True) == 0
        assert [one["kind"] for one in json.loads(capsys.readouterr().out)["entries"]] == ["log"]
        assert show(path.parent, kind="result", as_json=True) == 0
        assert [one["run"] for one in json.loads(capsys.readouterr().out)["entries"]] == ["two"]

    def test_one_without_entries_says_so(self, path, capsys):
        assert show(path.parent) == 0
        assert f"0 entries; {path} has none" in capsys.readouterr().out

    @pytest.mark.parametrize("value", [None, 5, [], "x", {"a": 5}])
    def test_it_reads_whatever_stands_there(self, path, value, capsys):
        entry = dict.fromkeys(
            ("kind", "run", "task", "size", "offset", "tensors", "metrics", "scores", "privacy"), value
        )
        Ledger(path).append({**entry, "kind": "update"})
        assert show(path.parent, verify=True) == 0
        assert "1 entries" in capsys.readouterr().out
