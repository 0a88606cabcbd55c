import ast
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl.node import agent
from fedctl.node.agent import Agent, Blobs, Refused, Run, encode_frame, is_held, key_of, kill_holder, read_frame

SOURCE = Path(agent.__file__)
DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
BUNDLE = "0" * 64
KEY = "r0001/alice/a1"
TASK = {"key": KEY, "models": {}}


def frames(content):
    return read_frame(io.BytesIO(content).read)


class TestFrames:
    @given(header=st.dictionaries(st.text(), st.none() | st.integers() | st.text()), body=st.binary(max_size=300))
    def test_a_frame_comes_back(self, header, body):
        assert frames(encode_frame(header, body) + b"more") == (header, body)

    @given(content=st.binary(max_size=100))
    def test_garbage_is_a_valueerror_or_the_end(self, content):
        with contextlib.suppress(ValueError):
            assert frames(content) is None

    @given(head=st.binary(max_size=60), body=st.binary(max_size=20), cut=st.integers(0, 80))
    def test_a_frame_around_garbage_is_read_or_a_valueerror(self, head, body, cut):
        content = struct.pack(">II", len(head), len(body)) + head + body
        with contextlib.suppress(ValueError):
            found = frames(content[:cut])
            assert found is None or isinstance(found[0], dict)

    @pytest.mark.parametrize("size", [1, 7, 8, 9, 20, 29])
    def test_a_frame_that_is_cut_off_is_a_valueerror(self, size):
        whole = encode_frame({"op": "hello"}, b"0123456789")
        with pytest.raises(ValueError, match="cut off"):
            frames(whole[:size])

    def test_the_end_is_none(self):
        assert frames(b"") is None

    @pytest.mark.parametrize("lengths", [(agent.LONGEST_HEADER + 1, 0), (2, agent.LONGEST_BODY + 1), (2**32 - 1, 0)])
    def test_a_claim_that_is_too_long_is_refused_before_it_is_read(self, lengths):
        asked = []

        def read(size):
            asked.append(size)
            return struct.pack(">II", *lengths)

        with pytest.raises(ValueError, match="claims"):
            read_frame(read)
        assert asked == [8]

    @pytest.mark.parametrize("head", [b"", b"[]", b"5", b"{", b"\xff", b"[" * 200_000, b'{"a":' * 100_000, b"9" * 9999])
    def test_a_header_that_is_no_object_is_a_valueerror(self, head):
        with pytest.raises(ValueError):
            frames(struct.pack(">II", len(head), 0) + head)


def end(blobs):
    """As if the agent had ended: what it held is free."""
    for upload in blobs.uploads.values():
        upload.file.close()
    blobs.uploads.clear()


class TestBlobs:
    @pytest.fixture
    def blobs(self, tmp_path):
        blobs = Blobs(tmp_path / "blobs")
        yield blobs
        end(blobs)

    @pytest.mark.parametrize("cut", [0, 1, 1000, len(DATA) - 1])
    def test_a_blob_goes_on_where_it_broke(self, blobs, cut):
        assert blobs.stat(DIGEST) == {"whole": False, "size": 0}
        assert blobs.put(DIGEST, len(DATA), 0, DATA[:cut]) == {"whole": False, "size": cut}
        end(blobs)
        again = Blobs(blobs.folder)
        assert again.stat(DIGEST) == {"whole": False, "size": cut}
        assert again.put(DIGEST, len(DATA), cut, DATA[cut:]) == {"whole": True, "size": len(DATA)}
        assert again.stat(DIGEST) == {"whole": True, "size": len(DATA)}
        assert again.path(DIGEST).read_bytes() == DATA
        assert [path.name for path in blobs.folder.iterdir()] == [DIGEST]

    def test_an_empty_blob_is_whole_after_an_empty_put(self, blobs):
        empty = hashlib.sha256(b"").hexdigest()
        assert blobs.put(empty, 0, 0, b"") == {"whole": True, "size": 0}

    def test_a_blob_that_is_there_is_not_touched(self, blobs):
        blobs.put(DIGEST, len(DATA), 0, DATA)
        assert blobs.put(DIGEST, len(DATA), 0, b"other") == {"whole": True, "size": len(DATA)}
        assert blobs.path(DIGEST).read_bytes() == DATA

    def test_a_gap_is_refused(self, blobs):
        with pytest.raises(Refused, match="past the 0 bytes"):
            blobs.put(DIGEST, len(DATA), 5, DATA[5:])

    def test_wrong_bytes_are_refused_and_forgotten(self, blobs):
        with pytest.raises(Refused, match="are not those of"):
            blobs.put(DIGEST, len(DATA), 0, DATA[:-1] + b"!")
        assert blobs.stat(DIGEST) == {"whole": False, "size": 0}

    @pytest.mark.parametrize("poison", [b"poison", DATA[:-1] + b"!", b"!" * len(DATA) * 2])
    def test_a_poisoned_part_costs_one_refusal(self, blobs, poison):
        blobs.folder.mkdir()
        blobs.part(DIGEST).write_bytes(poison)
        have = min(blobs.stat(DIGEST)["size"], len(DATA))
        with pytest.raises(Refused, match="are not those of"):
            blobs.put(DIGEST, len(DATA), have, DATA[have:])
        assert blobs.put(DIGEST, len(DATA), 0, DATA)["whole"]

    def test_what_goes_back_is_written_again_from_there(self, blobs):
        blobs.put(DIGEST, len(DATA), 0, DATA[:5000] + b"wrong")
        blobs.put(DIGEST, len(DATA), 5000, DATA[5000:6000])
        assert blobs.put(DIGEST, len(DATA), 6000, DATA[6000:]) == {"whole": True, "size": len(DATA)}
        assert blobs.path(DIGEST).read_bytes() == DATA

    def test_two_agents_that_are_sent_one_blob_do_not_touch_each_others_bytes(self, blobs):
        other = Blobs(blobs.folder)
        blobs.put(DIGEST, len(DATA), 0, DATA[:5000])
        assert other.stat(DIGEST) == {"whole": False, "size": 5000}
        other.put(DIGEST, len(DATA), 0, b"wrong" * 1000)
        other.put(DIGEST, len(DATA), 5000, DATA[5000:6000])
        assert blobs.put(DIGEST, len(DATA), 5000, DATA[5000:])["whole"]
        assert other.put(DIGEST, len(DATA), 6000, DATA[6000:]) == {"whole": True, "size": len(DATA)}
        assert blobs.path(DIGEST).read_bytes() == DATA
        assert [path.name for path in blobs.folder.iterdir()] == [DIGEST]

    @pytest.mark.parametrize("own", [0, 10])
    def test_an_agent_goes_on_where_another_is_whose_line_may_be_dead(self, blobs, own, monkeypatch):
        blobs.folder.mkdir()
        (blobs.folder / f"{DIGEST}.part").write_bytes(b"!" * own)
        dead, other = Blobs(blobs.folder), Blobs(blobs.folder)
        dead.put(DIGEST, len(DATA), 0, DATA[:5000])
        (blobs.folder / f"{DIGEST}.part1").write_bytes(b"!" * own)
        read = []
        monkeypatch.setattr(agent, "sha256", lambda file, size: read.append(size) or hashlib.sha256(DATA[:size]))
        assert blobs.stat(DIGEST) == {"whole": False, "size": 5000}
        assert blobs.put(DIGEST, len(DATA), 5000, DATA[5000:6000]) == {"whole": False, "size": 6000}
        assert other.stat(DIGEST) == {"whole": False, "size": 6000}, "the longest counts"
        assert blobs.put(DIGEST, len(DATA), 6000, DATA[6000:]) == {"whole": True, "size": len(DATA)}
        assert blobs.path(DIGEST).read_bytes() == DATA
        assert read == [0], "what was copied was hashed as it came"
        end(dead)

    def test_wrong_bytes_that_another_agent_holds_are_copied_once(self, blobs):
        other = Blobs(blobs.folder)
        other.put(DIGEST, len(DATA), 0, b"!" * 5000)
        with pytest.raises(Refused, match="are not those of"):
            blobs.put(DIGEST, len(DATA), 5000, DATA[5000:])
        assert blobs.stat(DIGEST) == {"whole": False, "size": 0}
        assert blobs.put(DIGEST, len(DATA), 0, DATA)["whole"]
        end(other)

    def test_a_hash_is_made_as_bytes_come_and_not_again(self, blobs, monkeypatch):
        read = []
        monkeypatch.setattr(agent, "sha256", lambda file, size: read.append(size) or hashlib.sha256(DATA[:size]))
        for offset in range(0, len(DATA), 1024):
            blobs.put(DIGEST, len(DATA), offset, DATA[offset : offset + 1024])
        assert blobs.stat(DIGEST)["whole"]
        assert read == [0]

    @pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA + b"!", DATA[:-1] + b"!"])
    def test_a_blob_that_was_damaged_is_found_and_removed(self, blobs, damage):
        blobs.put(DIGEST, len(DATA), 0, DATA)
        assert blobs.verify(DIGEST)
        blobs.path(DIGEST).write_bytes(damage)
        assert not blobs.verify(DIGEST)
        assert not blobs.verify(DIGEST), "nor is one that is not there"
        assert blobs.put(DIGEST, len(DATA), 0, DATA)["whole"]
        assert blobs.verify(DIGEST)

    def test_what_does_not_fit_leaves_the_room_that_it_took(self, blobs, monkeypatch):
        blobs.put(DIGEST, len(DATA), 0, DATA[:100])
        full = os.open("/dev/full", os.O_WRONLY)
        monkeypatch.setattr(agent, "write_all", lambda _, *pieces: os.writev(full, pieces))
        with pytest.raises(OSError, match="No space left"):
            blobs.put(DIGEST, len(DATA), 100, DATA[100:])
        assert not list(blobs.folder.iterdir())
        os.close(full)

    @pytest.mark.parametrize("digest", ["", "../x", "AB" * 32, DIGEST + "\n", DIGEST[:-1], None, 5, [DIGEST]])
    def test_what_is_no_digest_is_refused(self, blobs, digest):
        for call in (blobs.stat, blobs.remove):
            with pytest.raises(Refused, match="not a digest"):
                call(digest)
        with pytest.raises(Refused):
            blobs.put(digest, 1, 0, b"x")


class TestBlocks:
    """A blob that comes in blocks, over several lines."""

    DATA = os.urandom(2 * agent.BLOCK + 77)
    SIZE = len(DATA)
    DIGEST = hashlib.sha256(DATA).hexdigest()
    ALL: ClassVar = {"whole": False, "size": 0, "missing": [[0, 3]]}

    @pytest.fixture
    def agents(self, tmp_path):
        return [Blobs(tmp_path / "blobs") for _ in range(3)]

    def block(self, number):
        return number * agent.BLOCK, self.DATA[number * agent.BLOCK :][: agent.BLOCK]

    def test_blocks_come_in_any_order_from_any_agent(self, agents):
        assert agents[0].split(self.DIGEST, self.SIZE) == self.ALL
        for blobs, number, missing in zip(agents, (2, 0, 1), ([[0, 2]], [[1, 2]], []), strict=True):
            assert blobs.put_block(self.DIGEST, *self.block(number)) == {}
            assert agents[0].split(self.DIGEST, self.SIZE) == {"whole": False, "size": 0, "missing": missing}
        assert agents[1].seal(self.DIGEST) == {"whole": True, "size": self.SIZE}
        assert agents[2].seal(self.DIGEST) == agents[0].split(self.DIGEST, 5) == {"whole": True, "size": self.SIZE}
        assert agents[0].path(self.DIGEST).read_bytes() == self.DATA
        assert [path.name for path in agents[0].folder.iterdir()] == [self.DIGEST]

    def test_what_cannot_fit_is_refused_before_it_comes(self, agents):
        with pytest.raises(Refused, match="No space left on device: 1152921504606846976 bytes are to come"):
            agents[0].split(self.DIGEST, 2**60)
        assert not list(agents[0].folder.iterdir())

    def test_a_block_that_does_not_fit_leaves_the_room_that_the_others_took(self, agents, monkeypatch):
        agents[0].split(self.DIGEST, self.SIZE)
        full = os.open("/dev/full", os.O_WRONLY)
        with monkeypatch.context() as patched:
            patched.setattr(agent, "write_all", lambda _, *pieces: os.writev(full, pieces))
            with pytest.raises(OSError, match="No space left"):
                agents[0].put_block(self.DIGEST, *self.block(0))
        assert not list(agents[0].folder.iterdir())
        os.close(full)

    def test_what_came_in_order_stays(self, agents):
        agents[0].put(self.DIGEST, self.SIZE, 0, self.DATA[: agent.BLOCK + 5])
        assert agents[0].split(self.DIGEST, self.SIZE)["missing"] == [[1, 3]]
        for number in (1, 2):
            agents[0].put_block(self.DIGEST, *self.block(number))
        assert agents[0].seal(self.DIGEST)["whole"]

    def test_what_another_agent_writes_in_order_is_copied_and_left_to_it(self, agents):
        agents[0].put(self.DIGEST, self.SIZE, 0, self.DATA[:-1])
        assert agents[1].split(self.DIGEST, self.SIZE)["missing"] == [[2, 3]]
        assert agents[0].put(self.DIGEST, self.SIZE, self.SIZE - 1, self.DATA[-1:])["whole"]
        assert agents[1].seal(self.DIGEST)["whole"]

    def test_nothing_is_sealed_with_a_gap(self, agents):
        agents[0].split(self.DIGEST, self.SIZE)
        agents[0].put_block(self.DIGEST, *self.block(1))
        assert agents[0].seal(self.DIGEST)["missing"] == [[0, 1], [2, 3]]

    def test_wrong_bytes_are_refused_and_forgotten(self, agents):
        agents[0].split(self.DIGEST, self.SIZE)
        agents[0].put_block(self.DIGEST, 0, b"!" * agent.BLOCK)
        for number in (1, 2):
            agents[0].put_block(self.DIGEST, *self.block(number))
        with pytest.raises(Refused, match="are not those of"):
            agents[0].seal(self.DIGEST)
        assert not list(agents[0].folder.iterdir())
        with pytest.raises(Refused, match="does not come in blocks"):
            agents[0].put_block(self.DIGEST, *self.block(0))

    def test_wrong_bytes_that_another_agent_holds_are_split_once(self, agents):
        agents[0].put(self.DIGEST, self.SIZE, 0, b"!" * agent.BLOCK)
        assert agents[1].split(self.DIGEST, self.SIZE)["missing"] == [[1, 3]]
        for number in (1, 2):
            agents[1].put_block(self.DIGEST, *self.block(number))
        with pytest.raises(Refused, match="are not those of"):
            agents[1].seal(self.DIGEST)
        assert agents[1].split(self.DIGEST, self.SIZE) == self.ALL
        end(agents[0])

    def test_whoever_opened_the_file_before_it_was_sealed_writes_nothing_more(self, agents):
        agents[0].split(self.DIGEST, self.SIZE)
        for number in range(3):
            agents[0].put_block(self.DIGEST, *self.block(number))
        late = agents[1].path(self.DIGEST).with_suffix(".blocks").open("r+b", buffering=0)
        agents[0].seal(self.DIGEST)
        assert not agent.is_at(late, agents[1].path(self.DIGEST).with_suffix(".blocks"))
        late.close()
        assert agents[1].put_block(self.DIGEST, 0, b"!" * agent.BLOCK)["whole"]
        assert agents[1].path(self.DIGEST).read_bytes() == self.DATA

    @pytest.mark.parametrize(
        ("offset", "size"), [(0, 5), (1, agent.BLOCK), (2 * agent.BLOCK, 78), (3 * agent.BLOCK, 0), (-agent.BLOCK, 1)]
    )
    def test_what_is_no_block_is_refused(self, agents, offset, size):
        agents[0].split(self.DIGEST, self.SIZE)
        with pytest.raises(Refused, match="are not a block of"):
            agents[0].put_block(self.DIGEST, offset, b"x" * size)
        assert agents[0].split(self.DIGEST, self.SIZE) == self.ALL


class TestLine:
    @given(pieces=st.lists(st.binary(max_size=3000), max_size=8), sizes=st.lists(st.integers(0, 4000), max_size=12))
    def test_what_is_written_is_read_in_the_sizes_that_are_asked_for(self, pieces, sizes):
        source, sink = os.pipe()
        whole = b"".join(pieces)
        agent.write_all(sink, *pieces)
        os.close(sink)
        line, content = agent.Line(source), io.BytesIO(whole)
        try:
            for size in sizes:
                assert bytes(line.read(size)) == content.read(size)
        finally:
            os.close(source)

    def test_a_body_longer_than_a_pipe_arrives_whole_and_what_follows_shows(self):
        source, sink = os.pipe()
        bodies = [os.urandom(3 * 2**20 + 1), b"", os.urandom(7)]
        whole = b"".join(encode_frame({"n": n}, body) for n, body in enumerate(bodies))
        writer = threading.Thread(target=agent.write_all, args=(sink, whole))
        writer.start()
        line = agent.Line(source)
        for n, body in enumerate(bodies):
            header, came = read_frame(line.read)
            assert (header, bytes(came)) == ({"n": n}, body)
            writer.join(5 if n == 0 else 0)
            assert bool(line.held) == (n < 2)
        os.close(source)
        os.close(sink)


class TestSlice:
    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "file").write_bytes(DATA)
        return tmp_path / "file"

    @pytest.mark.parametrize(
        ("offset", "limit"), [(0, 9**9), (100, 200), (len(DATA), 5), (10**30, 5), (-5, 5), (5, -5)]
    )
    def test_a_part_of_a_file_goes_down_a_pipe_or_into_whatever_else(self, path, tmp_path, offset, limit):
        source, sink = os.pipe()
        part = agent.Slice(agent.open_own(path, buffering=0), offset, limit)
        part.write_to(sink)
        os.close(sink)
        with os.fdopen(source, "rb") as pipe, (tmp_path / "append").open("ab") as file:
            assert pipe.read() == DATA[max(0, offset) :][: max(0, limit)]
            agent.Slice(agent.open_own(path, buffering=0), offset, limit).write_to(
                file.fileno()
            )  # sendfile refuses a file that is appended to
        assert (tmp_path / "append").read_bytes() == DATA[max(0, offset) :][: max(0, limit)]
        assert len(part) == part.size

    def test_a_file_that_became_shorter_is_an_error_and_nothing_that_was_not_in_it_is_sent(self, path, tmp_path):
        part = agent.Slice(agent.open_own(path, buffering=0), 0, len(DATA))
        os.truncate(path, 100)
        source, sink = os.pipe()
        with pytest.raises(OSError, match="shorter"):
            part.write_to(sink)
        os.close(sink)
        with os.fdopen(source, "rb") as pipe:
            assert pipe.read() == DATA[:100]


class TestRun:
    def test_the_same_run_is_found_again(self, tmp_path):
        assert (
            Run.claim(tmp_path, "one", "aaaa").path == Run.claim(tmp_path, "one", "aaaa").path == tmp_path / "runs/one"
        )

    def test_two_runs_of_one_name_get_two_folders(self, tmp_path):
        paths = [Run.claim(tmp_path, "one", identity).path for identity in ("aaaa", "bbbb", "cccc", "aaaa")]
        assert len(set(paths)) == 3
        assert paths[0] == paths[3]
        assert {path.name for path in (tmp_path / "runs").iterdir()} == {path.name for path in paths}

    def test_two_machines_with_one_home_get_two_folders(self, tmp_path, monkeypatch):
        here = Run.claim(tmp_path, "one", "aaaa").path
        system = os.uname()
        monkeypatch.setattr("os.uname", lambda: os.uname_result((system[0], "another", *system[2:])))
        assert Run.claim(tmp_path, "one", "aaaa").path != here

    def test_agents_that_claim_at_the_same_time_agree(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from agent import Run\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "for n in range(50): print(Run.claim(Path(sys.argv[1]), 'run%d' % n, 'aaaa').path)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path), str(SOURCE.parent)]
        racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for racer in racers:
            racer.stdout.readline()
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        said = [racer.communicate(timeout=30)[0] for racer in racers]
        assert said[0] == said[1] == said[2] != ""
        assert len(list((tmp_path / "runs").iterdir())) == 50

    @pytest.mark.parametrize("name", ["", "..", "../x", "/x", ".x", "a/b", "a..b", "a\0b", "a" * 200])
    def test_a_name_that_leads_elsewhere_is_refused(self, tmp_path, name):
        with pytest.raises(Refused, match="not a run name"):
            Run.claim(tmp_path, name, "aaaa")

    @pytest.mark.parametrize(
        "key", ["", "..", "r0001/../a1", "r0001-alice-a1", "r0001/a/b/a1", "/etc/passwd", "r0001/alice/a1\n", "queue"]
    )
    def test_a_key_that_leads_elsewhere_is_refused(self, tmp_path, key):
        with pytest.raises(Refused, match="not a task key"):
            Run.claim(tmp_path, "one", "aaaa").folder(key)

    @pytest.mark.parametrize("key", ["r0003/alice/a1", "r0003/a-b-c/s12", "r12345/a.b_c/e1"])
    def test_a_folder_tells_its_key(self, tmp_path, key):
        assert key_of(Run.claim(tmp_path, "one", "aaaa").folder(key).name) == key

    def test_a_task_is_accepted_once(self, tmp_path):
        run = Run.claim(tmp_path, "one", "aaaa")
        assert run.accept(KEY, TASK)
        assert not run.accept(KEY, {"other": 1})
        assert not Run.claim(tmp_path, "one", "aaaa").accept(KEY, TASK)
        assert json.loads((run.folder(KEY) / "task.json").read_text()) == TASK
        assert len(list(run.queue.iterdir())) == 1

    def test_a_waiting_task_that_is_cancelled_has_a_result_and_leaves_the_queue(self, tmp_path):
        run = Run.claim(tmp_path, "one", "aaaa")
        run.accept(KEY, TASK)
        run.cancel(KEY)
        assert run.result(KEY)["error"] == "cancelled"
        assert not run.result(KEY)["retryable"]
        assert not run.queued()

    def test_a_task_that_somebody_holds_is_not_failed(self, tmp_path):
        run = Run.claim(tmp_path, "one", "aaaa")
        run.accept(KEY, TASK)
        with (run.folder(KEY) / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert not run.fail(KEY, "lost", retryable=True)
        assert run.fail(KEY, "lost", retryable=True)
        assert not run.fail(KEY, "again", retryable=True)
        assert run.result(KEY)["error"] == "lost"

    def test_a_waiting_task_that_cannot_be_read_is_written_anew(self, tmp_path):
        run = Run.claim(tmp_path, "one", "aaaa")
        run.accept(KEY, TASK)
        for content in (b"", b'{"key": "r00', b"\0" * 50, b"\xff"):
            (run.folder(KEY) / "task.json").write_bytes(content)
            assert not run.accept(KEY, TASK)
            assert json.loads((run.folder(KEY) / "task.json").read_text()) == TASK
        assert len(list(run.queue.iterdir())) == 1

    @pytest.mark.parametrize("begun", ["pid", "result.json", "lock"])
    def test_a_task_that_left_the_queue_is_queued_again_unless_it_was_begun(self, tmp_path, begun):
        run = Run.claim(tmp_path, "one", "aaaa")
        run.accept(KEY, TASK)
        run.unqueue(KEY)
        with (run.folder(KEY) / begun).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            run.accept(KEY, TASK)
            assert run.queued() == set()
        (run.folder(KEY) / begun).unlink()
        run.accept(KEY, TASK)
        assert run.queued() == {run.folder(KEY).name}

    def test_whose_folder_it_is_and_a_result_survive_a_loss_of_power_with_their_names(self, tmp_path, monkeypatch):
        durable, fsync = set(), os.fsync
        monkeypatch.setattr("os.fsync", lambda file: durable.add(os.fstat(file).st_ino) or fsync(file))
        run = Run.claim(tmp_path, "one", "aaaa")
        assert {path.stat().st_ino for path in (run.path / "id", run.path.parent)} <= durable
        run.accept(KEY, TASK)
        durable.clear()
        run.finish(KEY, {"key": KEY})
        folder = run.folder(KEY)
        assert {path.stat().st_ino for path in (folder / "result.json", folder, run.path)} <= durable

    def test_a_task_that_fails_leaves_the_room_that_its_update_took(self, tmp_path):
        run = Run.claim(tmp_path, "one", "aaaa")
        run.accept(KEY, TASK)
        for name in ("update.safetensors.tmp-77", "update.safetensors", ".result.json.0123456789ab", "mine.ckpt"):
            (run.folder(KEY) / name).touch()
        run.fail(KEY, "lost", retryable=True)
        left = {path.name for path in run.folder(KEY).iterdir()}
        assert left == {"task.json", "lock", "mine.ckpt", "result.json"}

    def test_what_is_not_written_whole_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.fsync", lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        with pytest.raises(OSError, match="No space left"):
            agent.write_whole(tmp_path / "file", b"x" * 100)
        assert not list(tmp_path.iterdir())

    def test_what_was_left_half_made_is_swept_unless_somebody_makes_it(self, tmp_path):
        half, other = tmp_path / ".r0001-a-a1.0123456789ab", tmp_path / ".bashrc"
        half.mkdir()
        other.touch()

        def fill(folder):
            agent.sweep(tmp_path)
            assert half.exists()
            assert folder.exists()

        assert agent.make_folder(tmp_path / "r0001-b-a1", fill)
        agent.sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"r0001-b-a1", ".bashrc"}
        agent.sweep(tmp_path / "nothing")

    def test_a_damaged_result_is_one_that_the_coordinator_refuses(self, tmp_path):
        run = Run.claim(tmp_path, "one", "aaaa")
        run.accept(KEY, TASK)
        for content in ("{", "[]", "[" * 100_000):
            (run.folder(KEY) / "result.json").write_text(content)
            assert run.result(KEY) == {}


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(pid):
    """Wait until a process has gone, or is a zombie that nobody reaps."""

    def is_gone():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
        except FileNotFoundError:
            return True

    until(is_gone)
    return True


class TestKilling:
    @pytest.fixture
    def stranger(self):
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
            yield process
            process.kill()

    def test_a_stale_number_kills_no_stranger(self, tmp_path, stranger):
        (tmp_path / "lock").touch()
        (tmp_path / "pid").write_text(str(stranger.pid))
        kill_holder(tmp_path / "lock", tmp_path / "pid")
        kill_holder(tmp_path / "nothing", tmp_path / "pid")
        assert stranger.poll() is None

    def test_whoever_holds_the_lock_is_killed_with_what_it_forked(self, tmp_path):
        code = (
            "import fcntl, os, sys, time; lock = open(sys.argv[1] + '/lock', 'ab'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
            "open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); os.fork(); print(flush=True); time.sleep(60)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
            process.stdout.readline(), process.stdout.readline()
            kill_holder(tmp_path / "lock", tmp_path / "pid")
            assert process.wait(10) == -signal.SIGKILL
            assert process.stdout.read() == b"", "the fork has closed it too"
        assert not is_held(tmp_path / "lock")

    def test_the_number_of_an_earlier_builder_is_gone_before_the_next_one_has_the_lock(self, tmp_path, monkeypatch):
        environments = agent.Environments(tmp_path)
        needs = {"python": "{}.{}".format(*sys.version_info), "requirements": "", "wheels": {}}
        stale = environments.path(environments.find(needs)["digest"]).with_suffix(".pid")
        stale.parent.mkdir()
        stale.write_text("1234567")
        there = []
        monkeypatch.setattr("subprocess.Popen", lambda *_, **__: there.append(stale.exists()) or sys.exit())
        with pytest.raises(SystemExit):
            environments.make(needs, tmp_path, Blobs(tmp_path / "blobs"), "aaaa")
        assert there == [False]

    @pytest.mark.parametrize("what", ["worker", "builder"])
    def test_what_cannot_be_written_down_is_ended(self, tmp_path, monkeypatch, what):
        begun, write_whole = [], agent.write_whole

        class Popen(subprocess.Popen):
            def __init__(self, _, **given):
                super().__init__(["sleep", "60"], **given)
                begun.append(self)

        def fill(path, data, **durable):
            if path.suffix == ".pid":
                raise OSError(errno.ENOSPC, "No space left on device")
            write_whole(path, data, **durable)

        monkeypatch.setattr("subprocess.Popen", Popen)
        monkeypatch.setattr(agent, "write_whole", fill)
        spec = {"python": sys.executable, "bundle": "0" * 64, "cwd": "/"}
        needs = {"python": "{}.{}".format(*sys.version_info), "requirements": "", "wheels": {}}
        run, environments = Run.claim(tmp_path, "one", "aaaa"), agent.Environments(tmp_path)
        begin = {
            "worker": lambda: run.start_worker(tmp_path, spec),
            "builder": lambda: environments.make(needs, tmp_path, Blobs(tmp_path / "blobs"), "aaaa"),
        }
        with pytest.raises(OSError, match="No space left"):
            begin[what]()
        assert [process.returncode for process in begun] == [-signal.SIGKILL]
        assert not [lock for lock in tmp_path.glob("**/*.lock") if is_held(lock)]

    def test_a_command_that_takes_too_long_is_ended_with_what_it_started(self, tmp_path):
        command = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"]
        began = time.monotonic()
        with pytest.raises(OSError, match="took longer than"):
            agent.output_of(command, 0.5)
        assert time.monotonic() - began < 30
        assert ended(int((tmp_path / "pid").read_text()))

    def test_a_command_whose_agent_was_killed_ends_by_itself(self, tmp_path):
        code = "import sys; sys.path.insert(0, sys.argv[1]); from agent import output_of; output_of(sys.argv[2:], 1)"
        slow = ["sh", "-c", f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; exec sleep 60"]
        with subprocess.Popen([sys.executable, "-c", code, str(SOURCE.parent), *slow]) as process:
            until((tmp_path / "pid").exists)
            process.kill()
        assert ended(int((tmp_path / "pid").read_text()))

    def test_stopping_or_cancelling_a_run_with_stale_numbers_kills_no_stranger(self, tmp_path, stranger):
        run = Run.claim(tmp_path, "one", "aaaa")
        run.accept(KEY, TASK)
        for place in (run.path / "worker.pid", run.folder(KEY) / "pid", run.children / str(stranger.pid)):
            place.write_text(str(stranger.pid))
        run.cancel(KEY)
        run.stop()
        assert stranger.poll() is None


class TestUnpacking:
    @staticmethod
    def packed(*entries):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content, kind, link in entries:
                member = tarfile.TarInfo(name)
                member.type, member.size, member.linkname = kind, len(content), link
                archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    @pytest.fixture
    def unpack(self, tmp_path):
        served = Served(tmp_path / "home")

        def unpack(content):
            digest = hashlib.sha256(content).hexdigest()
            served.ask("put", content, digest=digest, size=len(content), offset=0)
            return served.ask("unpack", digest=digest), served.home / "bundle" / digest

        return unpack

    def test_files_and_folders_are_written(self, unpack):
        content = self.packed(
            ("empty", b"", tarfile.DIRTYPE, ""),
            ("a/b/c.py", b"pass", tarfile.REGTYPE, ""),
            ("a/" + "long" * 60, b"x", tarfile.REGTYPE, ""),
        )
        answer, folder = unpack(content)
        assert "error" not in answer
        assert (folder / "a/b/c.py").read_bytes() == b"pass"
        assert (folder / "empty").is_dir()
        assert "error" not in unpack(content)[0], "a second time is no matter"

    def test_a_bundle_that_is_there_survives_a_loss_of_power(self, unpack, monkeypatch):
        durable, fsync = set(), os.fsync
        monkeypatch.setattr("os.fsync", lambda file: durable.add(os.fstat(file).st_ino) or fsync(file))
        _, folder = unpack(self.packed(("a/b.py", b"pass", tarfile.REGTYPE, ""), ("c", b"", tarfile.REGTYPE, "")))
        assert {path.stat().st_ino for path in folder.rglob("*") if path.is_file()} <= durable

    @pytest.mark.parametrize(
        "entry",
        [
            ("../x", b"", tarfile.REGTYPE, ""),
            ("a/../../x", b"", tarfile.REGTYPE, ""),
            ("/tmp/x", b"", tarfile.REGTYPE, ""),
            ("..", b"", tarfile.DIRTYPE, ""),
            ("x", b"", tarfile.SYMTYPE, "/etc"),
            ("x", b"", tarfile.LNKTYPE, "good.py"),
            ("x", b"", tarfile.FIFOTYPE, ""),
            ("x", b"", tarfile.CHRTYPE, ""),
        ],
    )
    def test_whatever_else_is_refused_and_leaves_nothing(self, unpack, entry, tmp_path):
        answer, folder = unpack(self.packed(("good.py", b"pass", tarfile.REGTYPE, ""), entry))
        assert "the bundle holds" in answer["error"]
        assert not list(folder.parent.iterdir())
        assert {path.name for path in tmp_path.iterdir()} == {"home"}

    def test_a_bundle_that_was_damaged_as_a_blob_is_asked_for_again(self, unpack):
        _, folder = unpack(self.packed(("a.py", b"pass", tarfile.REGTYPE, "")))
        shutil.rmtree(folder)
        blob = folder.parent.parent / "blobs" / folder.name
        blob.write_bytes(blob.read_bytes().replace(b"pass", b"fail"))
        served = Served(folder.parent.parent)
        assert served.ask("unpack", digest=folder.name) == {"missing": [folder.name]}
        assert not blob.exists()
        assert not folder.exists()

    def test_what_is_no_tar_is_refused_and_leaves_nothing(self, unpack):
        answer, folder = unpack(b"no tar at all" * 100)
        assert "ReadError" in answer["error"]
        assert not list(folder.parent.iterdir())


class Served:
    """An agent without a line: what it would send is kept."""

    def __init__(self, home):
        self.home = home
        self.sent = []
        self.agent = Agent(home, lambda header, body: self.sent.append((header, body)))

    def ask(self, op, body=b"", **fields):
        self.agent.answer({"id": 7, "op": op, **fields}, body)
        header, self.body = self.sent.pop()
        assert header.pop("re") == 7
        return header


RUN = {"run": "one", "identity": "aaaa"}


class TestAgent:
    @pytest.fixture
    def served(self, tmp_path):
        return Served(tmp_path / "home")

    def test_the_home_is_private(self, served):
        assert served.home.stat().st_mode & 0o777 == 0o700

    def test_a_home_that_was_there_keeps_its_rights_and_what_comes_into_it_is_private(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home").chmod(0o755)
        (tmp_path / "home/thesis.tex").touch()
        served = Served(tmp_path / "home")
        content = TestUnpacking.packed(("a/b.py", b"pass", tarfile.REGTYPE, ""))
        digest = hashlib.sha256(content).hexdigest()
        served.ask("put", content, digest=digest, size=len(content), offset=0)
        assert served.ask("unpack", digest=digest) == {}
        served.ask("list", **RUN)
        rights = {path.name: path.stat().st_mode & 0o777 for path in served.home.iterdir() if path.is_dir()}
        assert rights == dict.fromkeys(("blobs", "bundle", "runs"), 0o700)
        assert served.home.stat().st_mode & 0o777 == 0o755

    @given(
        header=st.dictionaries(
            st.sampled_from(
                ["op", "digest", "digests", "size", "offset", "key", "keys", "name", "limit", "run", "models"]
            ),
            st.sampled_from(
                ["stat", "put", "unpack", "read", "release", "list", "start", "watch", "__init__", "../x", ""]
            )
            | st.none()
            | st.integers()
            | st.lists(st.text(max_size=5), max_size=2)
            | st.sampled_from([10**30, -1]),
        )
    )
    def test_a_strange_request_is_an_error_and_no_end(self, header):
        kept = []
        home = Path(os.environ.get("TMPDIR", "/tmp")) / f"fedctl-test-{os.getpid()}"
        try:
            Agent(home, lambda *frame: kept.append(frame)).answer({**header, "id": 3}, b"")
        finally:
            shutil.rmtree(home)
        assert kept[0][0]["re"] == 3

    @pytest.mark.parametrize("op", [None, "", "nothing", "_answer", "send", "__class__", ["hello"], {"a": 1}])
    def test_an_unknown_operation_is_refused(self, served, op):
        assert "unknown operation" in served.ask(op)["error"]

    @pytest.mark.parametrize("name", ["../id", "/etc/passwd", "task.json", "", None, ["train.log"]])
    def test_nothing_but_two_files_of_a_task_can_be_read(self, served, name):
        answer = served.ask("read", **RUN, key=KEY, name=name, offset=0, limit=100)
        assert "not a readable file" in answer["error"]

    @pytest.mark.parametrize(
        ("offset", "limit", "body"), [(0, 100, b"0123456789"), (4, 3, b"456"), (50, 9, b""), (0, -1, b""), (0, 0, b"")]
    )
    def test_a_file_is_read_from_an_offset(self, served, offset, limit, body):
        run = served.agent.run(RUN)
        run.accept(KEY, TASK)
        (run.folder(KEY) / "train.log").write_bytes(b"0123456789")
        assert served.ask("read", **RUN, key=KEY, name="train.log", offset=offset, limit=limit) == {"size": 10}
        assert len(served.body) == len(body)
        source, sink = os.pipe()
        served.body.write_to(sink)
        os.close(sink)
        with os.fdopen(source, "rb") as pipe:
            assert pipe.read() == body

    def test_a_model_that_another_runs_task_waits_for_is_not_released(self, served):
        served.ask("put", DATA, digest=DIGEST, size=len(DATA), offset=0)
        other = served.agent.run({"run": "two", "identity": "bbbb"})
        other.accept(KEY, {"models": {"base": {"digest": DIGEST}}})
        assert served.ask("release", **RUN, keys=[], digests=[DIGEST]) == {}
        assert served.agent.blobs.stat(DIGEST)["whole"]
        other.cancel(KEY)
        assert served.ask("release", **RUN, keys=[], digests=[DIGEST]) == {}
        assert not served.agent.blobs.stat(DIGEST)["whole"]

    def test_removing_a_run_leaves_the_other_ones(self, served):
        served.ask("put", DATA, digest=DIGEST, size=len(DATA), offset=0)
        for number, identity in enumerate(("aaaa", "bbbb")):
            run = served.agent.run({"run": "one", "identity": identity})
            run.accept(f"r000{number}/alice/a1", {"models": {"base": {"digest": DIGEST}}})
        assert served.ask("remove", **RUN, digests=["../../x"]) == {}
        assert served.agent.blobs.stat(DIGEST)["whole"]
        assert len(list((served.home / "runs").iterdir())) == 1
        assert served.ask("remove", run="one", identity="bbbb", digests=[]) == {}
        assert not list((served.home / "runs").iterdir())
        assert not list((served.home / "blobs").iterdir())

    def test_what_is_half_removed_is_not_taken_for_whole_and_goes_with_the_rest(self, served, monkeypatch):
        bundle, environment = (served.home / kind / DIGEST for kind in ("bundle", "env"))
        for folder, file in ((bundle, "project/model.py"), (environment, "bin/python"), (environment, "ready")):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        assert served.agent.environments.is_ready(DIGEST)

        def die(path):
            raise KeyboardInterrupt(path)

        with monkeypatch.context() as patched:
            patched.setattr("shutil.rmtree", die)
            for folder in (bundle, environment):
                with pytest.raises(KeyboardInterrupt):
                    agent.discard(folder)
        assert not bundle.exists()
        assert not served.agent.environments.is_ready(DIGEST)
        assert served.ask("remove_all") == {}
        assert not served.home.exists()

    def test_removing_does_not_follow_links(self, served, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/file").touch()
        run = served.agent.run(RUN)
        (run.path / "link").symlink_to(tmp_path / "precious")
        assert served.ask("remove", **RUN, digests=[]) == {}
        assert (tmp_path / "precious/file").exists()

    def test_the_newest_whole_line_of_progress_is_pushed_once(self, served, monkeypatch):
        monkeypatch.setattr(agent, "LIVENESS_S", 1e9)
        run = served.agent.run(RUN)
        run.accept(KEY, TASK)
        served.agent.watched["aaaa", KEY] = agent.Watch(TASK, {"bundle": BUNDLE})
        path = run.folder(KEY) / "progress.jsonl"
        served.agent.look()
        path.write_text('{"step":1}\n{"step":2}\n{"ste')
        served.agent.look()
        served.agent.look()
        path.write_text('{"step":1}\n{"step":2}\n{"step":3}\n')
        served.agent.look()
        assert [header["progress"] for header, _ in served.sent] == [{"step": 2}, {"step": 3}]
        assert {header["key"] for header, _ in served.sent} == {KEY}

    @pytest.mark.parametrize("garbage", ["\n", "5\n", "[" * 100_000 + "\n", "x" * (agent.CHUNK + 5) + "\n"])
    def test_garbage_in_the_progress_holds_nothing_up(self, served, garbage, monkeypatch):
        monkeypatch.setattr(agent, "LIVENESS_S", 1e9)
        run = served.agent.run(RUN)
        run.accept(KEY, TASK)
        served.agent.watched["aaaa", KEY] = agent.Watch(TASK, {"bundle": BUNDLE})
        path = run.folder(KEY) / "progress.jsonl"
        path.write_text(garbage)
        for _ in range(3):
            served.agent.look()
        with path.open("a") as file:
            file.write('{"step":3}\n')
        served.agent.look()
        assert [header["progress"] for header, _ in served.sent] == [{"step": 3}]

    def test_a_watched_task_whose_folder_is_gone_has_failed(self, served):
        run = served.agent.run(RUN)
        run.accept(KEY, TASK)
        served.agent.watched["aaaa", KEY] = agent.Watch(TASK, {"bundle": BUNDLE})
        shutil.rmtree(run.path)
        served.agent.look()
        assert "the task is gone" in served.sent[0][0]["result"]["error"]
        assert not served.agent.watched

    def test_a_task_that_was_begun_and_that_nobody_holds_has_failed(self, served, monkeypatch):
        monkeypatch.setattr(agent, "LIVENESS_S", 0.0)
        run = served.agent.run(RUN)
        run.accept(KEY, TASK)
        (run.folder(KEY) / "pid").write_text("1")
        run.unqueue(KEY)
        served.agent.watched["aaaa", KEY] = agent.Watch(TASK, {"bundle": BUNDLE})
        served.agent.look()
        assert not served.sent, "whoever saw it die gets a moment to say why"
        served.agent.look()
        assert served.sent[0][0]["result"]["error"] == "the process that worked on the task is gone"
        assert served.sent[0][0]["result"]["retryable"]

    def test_the_queue_of_a_run_is_listed_once_a_look(self, served, monkeypatch):
        monkeypatch.setattr(agent, "LIVENESS_S", 0.0)
        run, listed = served.agent.run(RUN), []
        for number in range(3):
            key = f"r0001/n{number}/a1"
            run.accept(key, TASK)
            run.unqueue(key)
            (run.folder(key) / "pid").write_text("1")
            served.agent.watched["aaaa", key] = agent.Watch(TASK, {"bundle": BUNDLE})
        queued = run.queued
        monkeypatch.setattr(run, "queued", lambda: listed.append(1) or queued())
        served.agent.look()
        assert len(listed) == 1

    def test_a_task_that_an_agent_did_not_come_to_queue_is_queued(self, served, monkeypatch):
        monkeypatch.setattr(agent, "LIVENESS_S", 0.0)
        run = served.agent.run(RUN)
        run.accept(KEY, TASK)
        run.unqueue(KEY)
        (served.home / "bundle" / BUNDLE).mkdir(parents=True)
        served.agent.watched["aaaa", KEY] = agent.Watch(TASK, {"bundle": BUNDLE, "python": sys.executable})
        with (run.path / "worker.lock").open("w") as worker:
            fcntl.flock(worker, fcntl.LOCK_EX)
            served.agent.look()
        assert run.queued() == {run.folder(KEY).name}
        assert not served.sent

    def test_a_worker_that_does_not_stay_is_started_once_more_and_then_told_of(self, served, monkeypatch):
        monkeypatch.setattr(agent, "LIVENESS_S", 0.0)
        python = served.home / "python"
        python.write_text("#!/bin/sh\necho called >> $(dirname $0)/calls; echo no torch here >&2; exit 1\n")
        python.chmod(0o700)
        worker = {"python": str(python), "bundle": "0" * 64, "cwd": "/nowhere"}
        assert served.ask("start", **RUN, key=KEY, task=TASK, worker=worker) == {"missing": ["0" * 64]}
        (served.home / "bundle" / ("0" * 64)).mkdir(parents=True)
        assert served.ask("start", **RUN, key=KEY, task=TASK, worker=worker) == {"state": "started"}
        assert served.ask("start", **RUN, key=KEY, task=TASK, worker=worker) == {"state": "adopted"}
        deadline = time.monotonic() + 20
        while not served.sent and time.monotonic() < deadline:
            served.agent.look()
            time.sleep(0.02)
        result = served.sent[0][0]["result"]
        served.agent.runs["aaaa"].worker.wait()
        assert result["error"] == "the worker does not stay: no torch here"
        assert (served.home / "calls").read_text().count("called") <= 3, "once for each start, and once more"
        again = served.ask("start", **RUN, key=KEY, task=TASK, worker=worker)
        assert (again["state"], again["result"]) == ("done", result)
        assert served.ask("list", **RUN) == {"tasks": {"r0001-alice-a1": "done"}, "worker": False}

    def test_a_task_whose_worker_cannot_be_started_does_not_wait_for_another(self, served):
        worker = {"python": "/no/python", "bundle": "0" * 64, "cwd": "/"}
        (served.home / "bundle" / ("0" * 64)).mkdir(parents=True)
        assert "/no/python" in served.ask("start", **RUN, key=KEY, task=TASK, worker=worker)["error"]
        assert served.ask("list", **RUN)["tasks"] == {}

    def test_a_worker_that_makes_no_sense_fails_its_task_and_ends_no_agent(self, served, monkeypatch):
        monkeypatch.setattr(agent, "LIVENESS_S", 0.0)
        run = served.agent.run(RUN)
        run.accept(KEY, TASK)
        served.agent.watched["aaaa", KEY] = agent.Watch(TASK, {"bundle": 5})
        served.agent.look()
        served.agent.look()
        assert "does not stay" in served.sent[0][0]["result"]["error"]

    def test_a_python_is_probed_without_importing(self, served):
        answer = served.ask("probe", python=sys.executable, packages=["pytest", "no-such-package"])
        assert answer["packages"] == {"pytest": pytest.__version__, "no-such-package": None}
        assert "does not run" in served.ask("probe", python="/no/python", packages=[])["error"]
        assert "does not run" in served.ask("probe", python="/bin/false", packages=[])["error"]

    def test_a_probe_says_what_importlib_metadata_says(self, served, tmp_path, monkeypatch):
        for path, content in {
            "old_one-1.0.post1-py3.11.egg-info/PKG-INFO": "Name: old-one\nVersion: 1.0.post1\n",
            "one_file-2.0-py3.11.egg-info": "Name: one-file\nVersion: 2.0\n",
            "developed.egg-info/PKG-INFO": "Metadata-Version: 2.1\nName: developed\nVersion: 3.0+git\n\nVersion: 9",
            "Zope.Dotted-4.1.dist-info/METADATA": "Name: Zope.Dotted\nVersion: 4.1\n",
        }.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(content)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(tmp_path)
        given = ["old-one", "one_file", "developed", "zope.dotted", "Zope_Dotted"]
        installed = {one.metadata["Name"]: one.version for one in metadata.distributions()}
        assert len(installed) > 20
        packages = [*given, *installed, "no-such-package"]
        answer = served.ask("probe", python=sys.executable, packages=packages)["packages"]
        assert answer.pop("no-such-package") is None
        assert answer == {name: metadata.version(name) for name in answer}


def pythons() -> dict[str, str]:
    """This Python, and an older or newer one of each version that can be found."""
    found = {"{}.{}".format(*sys.version_info): sys.executable}
    for minor in range(8, 20):
        places = [*Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"), shutil.which(f"python3.{minor}")]
        for place in filter(None, places):
            if "shims" not in str(place):
                found.setdefault(f"3.{minor}", str(place))
    return found


PYTHONS = pythons()


class TestTheFile:
    def test_it_parses_as_python_3_8(self):
        ast.parse(SOURCE.read_text(), feature_version=(3, 8))

    def test_it_imports_the_standard_library_alone(self):
        for node in ast.walk(ast.parse(SOURCE.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= sys.stdlib_module_names
            elif isinstance(node, ast.ImportFrom):
                assert node.module in sys.stdlib_module_names

    @pytest.mark.parametrize(("version", "python"), sorted(PYTHONS.items()))
    def test_it_answers_under_every_python_that_is_here(self, version, python, tmp_path):
        content = TestUnpacking.packed(("a/b.py", b"pass", tarfile.REGTYPE, ""))
        digest = hashlib.sha256(content).hexdigest()
        worker = {"bundle": digest, "python": "/bin/true", "cwd": "/"}
        asked = [
            encode_frame({"id": 1, "op": "hello"}),
            encode_frame({"id": 2, "op": "put", "digest": digest, "size": len(content), "offset": 0}, content),
            encode_frame({"id": 3, "op": "unpack", "digest": digest}),
            encode_frame({"id": 4, "op": "start", **RUN, "key": KEY, "task": TASK, "worker": worker}),
            encode_frame({"id": 5, "op": "cancel", **RUN, "key": KEY}),
            encode_frame({"id": 6, "op": "list", **RUN}),
            encode_frame({"id": 7, "op": "remove", **RUN, "digests": [digest]}),
        ]
        done = subprocess.run(
            [python, "-W", "error", "-I", str(SOURCE), "serve"],
            input=b"".join(asked),
            capture_output=True,
            env={**os.environ, "FEDCTL_HOME": str(tmp_path / "home")},
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(agent.GREETING)
        pipe = io.BytesIO(done.stdout[len(agent.GREETING) :])
        answers = {header.get("re"): header for header, _ in iter(lambda: read_frame(pipe.read), None)}
        assert answers[1]["python"].startswith(version)
        assert answers[2]["whole"]
        assert answers[3] == {"re": 3}
        assert answers[4]["state"] == "started"
        assert answers[6]["tasks"] == {"r0001-alice-a1": "done"}
        assert answers[7] == {"re": 7}

    def test_it_starts_fast(self, tmp_path):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-I", str(SOURCE), "serve"],
                input=encode_frame({"id": 1, "op": "hello"}),
                capture_output=True,
                env={**os.environ, "FEDCTL_HOME": str(tmp_path / "home")},
                check=True,
                timeout=60,
            )
            seconds.append(time.perf_counter() - began)
        print(f"from nothing to hello and gone: {1000 * min(seconds):.0f} ms at best")
        assert min(seconds) < 1.0
