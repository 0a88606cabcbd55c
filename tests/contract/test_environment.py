"""Environments, made by a real agent with venv and pip, of tiny wheels."""

import base64
import hashlib
import json
import os
import signal
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedctl.durable import digest
from fedctl.environment import Environment, Given
from fedctl.errors import ConnectionLost, InstallError, NodeError
from fedctl.host import Host, Work
from fedctl.node.agent import is_held
from fedctl.preparation import needs
from fedctl.transports.local import LocalTransport
from tests.unit.test_environment import packed

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def write_wheel(folder, name, version="1.0", code="", requires=()):
    """A wheel is a zip with three files of metadata."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    needed = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{name}.py": code or f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        record = ""
        for file, content in files.items():
            archive.writestr(zipfile.ZipInfo(file), content)
            hashed = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record += f"{file},sha256={hashed},{len(content)}\n"
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), f"{record}{info}/RECORD,,\n")
    return path


class Site:
    """A node's home, a wheelhouse, and hosts that are as many coordinators."""

    def __init__(self, folder):
        self.home = folder / "home"
        self.wheelhouse = folder / "wheels"
        self.bundle = folder / "bundle.tar"
        self.bundle.write_bytes(packed(folder / "project"))
        self.opened = []
        self.said = []

    def wants(self, requirements, python=HERE):
        wheels = {path.name: digest(path) for path in sorted(self.wheelhouse.glob("*.whl"))}
        return Environment(python=python, requirements=requirements, wheels=wheels, wheelhouse=self.wheelhouse)

    def host(self, environment, identity="i"):
        work = Work(
            run="r",
            identity=identity,
            bundle=digest(self.bundle),
            bundle_path=self.bundle,
            preload=(),
            cwd=str(self.home),
            environments={},
        )
        transport = LocalTransport(home=str(self.home))
        self.opened.append(Host(transport, python=sys.executable, slots=1, work=work, environment=environment))
        return self.opened[-1]

    def provide(self, environment):
        return self.host(environment).provide(self.said.append)

    def stand(self, environment):
        """What the agent says of an environment."""
        asked = needs(digest(self.bundle), environment)
        return self.host(None).connection().ask("hello", needs=asked)["has"]["environment"]

    def outcomes(self, begun):
        """What came of hosts that were made ready, or the error."""
        return [one.exception() or one.result() for one in begun]

    @property
    def made(self):
        return sorted((self.home / "env").glob("*/ready"))

    def is_making(self):
        return any(is_held(lock) for lock in (self.home / "env").glob("*.lock"))

    def log(self):
        return "".join(path.read_text() for path in (self.home / "env").glob("*.log"))


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    for host in site.opened:
        host.close()
    assert until(lambda: not site.is_making()), "a builder is left"


def until(condition, within_s=60):
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_one_is_made_of_a_wheelhouse_and_the_second_time_nothing_is_done(site):
    write_wheel(site.wheelhouse, "tiny", requires=["other>=2"])
    write_wheel(site.wheelhouse, "other", "2.5")
    first = site.provide(site.wants("tiny==1.0\n"))
    assert (first.bundle, first.environment, first.python) == ("sent", "made", HERE)
    assert first.seconds > 0
    assert any("tiny" in line for line in site.said)
    (ready,) = site.made
    assert ready.parent.name == first.interpreter["environment"]
    packages = json.loads(ready.read_text())["packages"]
    assert {"tiny": "1.0", "other": "2.5"}.items() <= packages.items()
    assert {path.name[64:] for path in ready.parents[1].iterdir()} == {"", ".json", ".lock", ".log", ".pid"}

    host, asked = site.host(site.wants("tiny==1.0\n")), []
    connection = host.connection()
    connection.ask = lambda op, **_: asked.append(op)
    site.said.clear()
    before = ready.stat()
    second = host.provide(site.said.append)
    assert (second.bundle, second.environment, second.is_new) == ("there", "there", False)
    assert (asked, site.said) == ([], []), "the greeting has told it all"
    assert ready.stat() == before

    (site.home / "bundle").rename(site.home / "elsewhere")
    third = site.provide(site.wants("tiny==1.0\n"))
    assert (third.bundle, third.environment) == ("sent", "there")

    python = ready.with_name("bin") / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert not site.stand(site.wants("tiny==1.0\n"))["ready"], "its Python has gone"


def test_another_wheel_or_requirement_is_another_environment_and_another_preference_may_be_none(site):
    write_wheel(site.wheelhouse, "tiny", code="value = 1\n")
    first = site.stand(site.wants("tiny\n"))
    assert (first["version"], first["python"], first["ready"]) == (HERE, sys.executable, False)
    assert site.stand(site.wants("tiny\n")) == first
    assert site.stand(site.wants("tiny\n", python="3.99")) == first, "the Python that is there has to do"
    others = [site.stand(site.wants("tiny>=1\n"))["digest"]]
    write_wheel(site.wheelhouse, "tiny", code="value = 2\n")
    others.append(site.stand(site.wants("tiny\n"))["digest"])
    assert len({first["digest"], *others}) == 3


def test_a_failed_install_leaves_pips_last_words_and_is_told_to_all_who_waited_for_it(site):
    write_wheel(site.wheelhouse, "tiny")
    begun = begin(site, *[site.host(site.wants("absent==3.1\n"))] * 4)
    failures = site.outcomes(begun)
    assert all(isinstance(failure, InstallError) for failure in failures)
    assert site.said.count("making the environment") < 4
    failure = failures[0]
    assert failure.message.startswith("the packages could not be installed: ERROR: No matching")
    assert "absent==3.1" in failure.detail
    assert len(failure.detail.splitlines()) <= 15
    assert "wheelhouse" in failure.hint
    assert {path.suffix for path in (site.home / "env").iterdir()} == {".failed", ".json", ".lock", ".log", ".pid"}


def begin(site, *hosts):
    """Have hosts made ready at once; returns when pip is at work."""
    pool = ThreadPoolExecutor(len(hosts))
    begun = [pool.submit(host.provide, site.said.append) for host in hosts]
    pool.shutdown(wait=False)
    assert until(lambda: list((site.home / "env").glob("*/bin/python")))
    return begun


def builder_of(site):
    """The process group of the builder that is at work."""
    (pid,) = (site.home / "env").glob("*.pid")
    return int(pid.read_text())


def test_one_that_was_killed_half_way_is_not_taken_for_whole_and_many_at_once_make_one(site):
    write_wheel(site.wheelhouse, "tiny")
    host = site.host(site.wants("tiny\n"))
    begun = begin(site, host)
    host.close()
    os.killpg(builder_of(site), signal.SIGKILL)
    assert isinstance(site.outcomes(begun)[0], ConnectionLost)
    assert site.made == []
    stale = next((site.home / "env").glob("*/bin")).with_name("stale")
    stale.touch()

    many = begin(site, *(site.host(site.wants("tiny\n")) for _ in range(3)))
    assert [made.environment for made in site.outcomes(many)] == ["made"] * 3
    assert len(site.made) == 1
    assert site.log().count("Successfully installed") == 1
    assert not stale.exists()


def test_whoever_watches_has_it_made_anew_when_its_builder_dies(site):
    write_wheel(site.wheelhouse, "tiny")
    begun = begin(site, site.host(site.wants("tiny\n")))
    os.killpg(builder_of(site), signal.SIGKILL)
    assert [made.environment for made in site.outcomes(begun)] == ["made"]
    assert len(site.made) == 1


def test_the_making_goes_on_without_a_line_and_is_adopted(site):
    write_wheel(site.wheelhouse, "tiny")
    host = site.host(site.wants("tiny\n"))
    begun, builder = begin(site, host), builder_of(site)
    host.close()
    site.outcomes(begun)
    os.kill(builder, 0)
    assert site.provide(site.wants("tiny\n")).environment in ("made", "there")
    assert builder_of(site) == builder
    assert len(site.made) == 1


def test_stopping_the_only_run_that_asked_ends_the_making_and_nobody_begins_it_anew(site):
    write_wheel(site.wheelhouse, "tiny")
    begun, builder = begin(site, site.host(site.wants("tiny\n"))), builder_of(site)
    site.host(None).connection().ask("stop", run="r", identity="i")
    assert not site.is_making()
    assert isinstance(site.outcomes(begun)[0], InstallError)
    assert builder_of(site) == builder
    assert site.made == []


def test_stopping_one_of_two_runs_that_asked_leaves_the_making_to_the_other(site):
    write_wheel(site.wheelhouse, "tiny")
    begun = begin(site, *(site.host(site.wants("tiny\n"), identity) for identity in "ij"))
    assert until(lambda: len(list((site.home / "env").glob("*.asked-*"))) == 2)
    builder = builder_of(site)
    site.host(None).connection().ask("stop", run="r", identity="i")
    assert [made.environment for made in site.outcomes(begun)] == ["made"] * 2
    assert builder_of(site) == builder
    assert not list((site.home / "env").glob("*.asked-*")), "who asked has been answered"


def test_cleaning_a_machine_ends_what_its_own_runs_have_made_there_and_nothing_of_others(site):
    write_wheel(site.wheelhouse, "tiny")
    begin(site, site.host(site.wants("tiny\n"), "i-python3"))
    connection = site.host(None).connection()
    with pytest.raises(NodeError, match="an environment is being made there"):
        connection.ask("stop_all", identities=["j"], force=False)
    assert site.is_making()
    connection.ask("stop_all", identities=["i"], force=False)
    assert not site.is_making()
    connection.ask("remove_all")
    assert not (site.home / "env").exists()


def test_the_name_of_a_wheel_is_no_path(site):
    write_wheel(site.wheelhouse, "tiny")
    wanted = site.wants("tiny\n")
    environment = Environment(
        python=HERE,
        requirements="tiny\n",
        wheels={"../x.whl": next(iter(wanted.wheels.values()))},
        wheelhouse=wanted.wheelhouse,
    )
    environment.wheelhouse.with_name("x.whl").write_bytes(next(site.wheelhouse.glob("*.whl")).read_bytes())
    with pytest.raises(NodeError, match="not the name of a wheel"):
        site.provide(environment)


def test_a_given_python_is_looked_at_and_used_as_it_is(site):
    given = site.provide(Given(python=sys.executable))
    assert (given.environment, given.interpreter, given.notes) == ("as given", {"python": sys.executable}, ())
    assert given.python.endswith(sys.executable)
    assert not (site.home / "env").exists()


def test_a_given_python_without_the_packages_is_refused_with_the_command_that_installs_them(site, tmp_path):
    bare = tmp_path / "bare"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-m", "venv", "--without-pip", str(bare)) == 0
    python = str(bare / "bin" / "python")
    with pytest.raises(
        NodeError, match="has no torch and no numpy and no safetensors and no pytorch-lightning"
    ) as caught:
        site.provide(Given(python=python))
    assert f"`{python} -m pip install torch==" in caught.value.hint
    with pytest.raises(NodeError, match="does not run") as caught:
        site.provide(Given(python="/nowhere/python"))
    assert "python:" in caught.value.hint
