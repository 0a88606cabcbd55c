import contextlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedctl import durable, rundir
from fedctl.errors import StateError, UsageError
from fedctl.rundir import RunDir

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys; from pathlib import Path; from fedctl.rundir import RunDir\n"
    "with RunDir(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()\n"
)


def create(folder, name="one"):
    return rundir.create(folder, name, configuration="name: x\n", bundle=b"tar", facts={"seed": 7, "fedctl": "1.2"})


@contextlib.contextmanager
def held_by_another_process(run):
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        yield process


def test_a_run_is_made_whole(tmp_path):
    run = create(tmp_path)
    assert run.path == tmp_path / "runs/one"
    assert run.configuration.read_text() == "name: x\n"
    assert run.bundle.read_bytes() == b"tar"
    assert run.journal.read_bytes() == b""
    facts = run.facts()
    assert facts["seed"] == 7
    assert len(facts["identity"]) == 32
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"one", "latest"}


def test_two_runs_have_two_identities(tmp_path):
    assert create(tmp_path, "one").facts()["identity"] != create(tmp_path, "two").facts()["identity"]


def test_a_taken_name_is_refused_and_the_run_is_left_alone(tmp_path):
    identity = create(tmp_path).facts()["identity"]
    with pytest.raises(StateError, match="run one exists already") as caught:
        create(tmp_path)
    assert "--resume one" in caught.value.hint
    assert RunDir(tmp_path / "runs/one").facts()["identity"] == identity
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"one", "latest"}


@pytest.mark.parametrize("name", ["", "latest", "../x", "a/b", ".hidden", "-x", "a..b", "a b", "ü", "a" * 101, "a\n"])
def test_a_name_that_is_no_folder_of_ours_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be the name of a run"):
        create(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(StateError, match=r"cannot make the run's folder .*/runs/one"):
        create(tmp_path)


def test_runs_are_found_by_name_by_path_and_as_the_latest(tmp_path):
    one, two = create(tmp_path, "one"), create(tmp_path, "two")
    assert rundir.find(tmp_path, None).path == two.path
    assert rundir.find(tmp_path, "one").path == one.path
    assert rundir.find(tmp_path / "elsewhere", str(one.path)).path == one.path


def test_an_unknown_run_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(StateError, match="no run in") as caught:
        rundir.find(tmp_path, None)
    assert "fedctl launch" in caught.value.hint
    create(tmp_path, "one")
    create(tmp_path, "two")
    with pytest.raises(StateError, match="no run three in") as caught:
        rundir.find(tmp_path, "three")
    assert caught.value.hint == "there are one, two"


def test_a_new_name_is_of_the_second_and_free(tmp_path):
    now = datetime(2026, 11, 21, 23, 50, 7, tzinfo=UTC)
    assert rundir.new_name("digits", now, tmp_path) == "digits-20261121-235007"
    create(tmp_path, "digits-20261121-235007")
    assert rundir.new_name("digits", now, tmp_path) == "digits-20261121-235007-2"


def test_a_run_that_another_process_holds_shows_its_owner(tmp_path):
    run = create(tmp_path)
    assert not run.is_alive()
    with held_by_another_process(run) as process:
        assert run.is_alive()
        assert run.owner()["pid"] == process.pid
        with (
            pytest.raises(StateError, match=rf"run one is held by process {process.pid} of \S+ on \S+ since") as caught,
            run.lock(),
        ):
            pass
        assert "fedctl status one" in caught.value.hint
        assert run.owner()["pid"] == process.pid, "a refused one writes nothing"
        process.kill()
    assert not run.is_alive()
    with run.lock():
        assert run.owner()["pid"] == os.getpid()


def test_asking_whether_a_run_is_alive_does_not_keep_one_from_taking_it(tmp_path):
    run = create(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from fedctl.rundir import RunDir\n"
        "run = RunDir(Path(sys.argv[1]))\n"
        "print('asking', flush=True)\n"
        "while True: run.is_alive(); time.sleep(0.001)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.readline()
        for _ in range(100):
            with run.lock():
                pass
        process.kill()


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", None])
def test_damaged_facts_are_a_state_error(tmp_path, content):
    run = create(tmp_path)
    (run.path / "run.json").unlink() if content is None else (run.path / "run.json").write_text(content)
    with pytest.raises(StateError, match=r"run\.json is missing or damaged"):
        run.facts()


def test_a_run_of_another_version_names_it(tmp_path):
    run = create(tmp_path)
    (run.path / "run.json").write_text(json.dumps({**run.facts(), "schema": 99}))
    with pytest.raises(StateError, match="schema 99, this one reads 3") as caught:
        run.facts()
    assert caught.value.hint == "use fedctl 1.2"


def test_removing_the_latest_makes_another_the_latest_and_the_last_one_leaves_nothing(tmp_path):
    one, two = create(tmp_path, "one"), create(tmp_path, "two")
    rundir.remove(two)
    assert rundir.find(tmp_path, None).path == one.path
    rundir.remove(one)
    assert not (tmp_path / "runs" / "latest").is_symlink()
    assert not list(tmp_path.iterdir())


def test_removing_an_older_one_leaves_the_latest(tmp_path):
    one, two = create(tmp_path, "one"), create(tmp_path, "two")
    rundir.remove(one)
    assert rundir.find(tmp_path, None).path == two.path


def test_a_file_is_written_whole_and_named_by_its_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    blob = durable.write_atomically(path, b"after")
    assert path.read_bytes() == b"after"
    assert blob == durable.digest(path)
    assert blob.size == 5
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_copy_is_whole_and_leaves_nothing_beside_it(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"model")
    for _ in range(2):
        durable.copy_atomically(source, target)
        assert target.read_bytes() == b"model"
        assert {each.name for each in tmp_path.iterdir()} == {"source", "target"}
    durable.write_atomically(source, b"newer")
    assert target.read_bytes() == b"model", "a rename over the one name leaves the other's file"


def test_a_copy_goes_to_another_file_system_too(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system")
    source = other / f"fedctl-test-{os.getpid()}"
    source.write_bytes(b"model")
    try:
        durable.copy_atomically(source, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == b"model"
    finally:
        source.unlink()


def test_what_was_left_half_written_is_swept_but_for_updates_that_still_come(tmp_path):
    run = rundir.create(tmp_path, "one", configuration="name: x\n", bundle=b"tar", facts={"seed": 7})
    for number in (1, 2):
        for name in (".alice.safetensors.0123456789ab.part", "bob.safetensors", ".tmp-model"):
            path = run.update(number, "alice").with_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    alone = run.alone("alice").with_name(".alice.safetensors.0123456789ab.part")
    alone.parent.mkdir()
    alone.touch()
    run.sweep()
    assert alone.exists()
    left = {str(path.relative_to(run.path / "rounds")) for path in run.path.glob("rounds/*/updates/*")}
    assert left == {
        "0001/updates/bob.safetensors",
        "0002/updates/bob.safetensors",
        "0002/updates/.alice.safetensors.0123456789ab.part",
    }
