"""Approvals: real bundles of real projects, what the owner is shown of them, and that only the same bytes pass."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import fedctl
from fedctl import bundle
from fedctl.federation import Federation, Node, TaskSpec
from fedctl.node.agent import Refused
from fedctl.node.owner import approvals as module
from fedctl.node.owner import comparison, known
from fedctl.node.owner.approvals import CODE, ENVIRONMENT, Approvals
from fedctl.node.owner.errors import OwnerError

NEEDS = {"python": "3.11", "requirements": "torch==2.13.0\nnumpy\n", "wheels": {}}


class Site:
    """An owner's folder, and a coordinator's project."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project, self.blobs = folder / "owner", folder / "project", folder / "blobs"
        for place in (self.folder, self.project, self.blobs):
            place.mkdir()
        (self.project / "model.py").write_text("class Net:\n    lr = 0.1\n")
        (self.project / "data.py").write_text("class Rows: ...\n")
        self.approvals = Approvals(self.folder)

    def ask(self, content: bytes | None = None, asker: str = "a key") -> str:
        """Ask for the project as it is, or for these bytes."""
        if content is None:
            task = TaskSpec(model="model.py:Net", data="data.py:Rows")
            nodes = (Node(name="a", host="local"),)
            content = bundle.pack(Federation(name="x", folder=self.project, task=task, nodes=nodes))
        digest = hashlib.sha256(content).hexdigest()
        blob = self.blobs / digest
        blob.write_bytes(content)
        self.approvals.ask_code(digest, blob, asker)
        blob.unlink()
        return digest

    def shown(self, digest: str) -> str:
        return "\n".join(self.approvals.diff(digest))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def packed(**files: bytes) -> bytes:
    return packed_as({name.replace("__", "/") + ".py": content for name, content in files.items()})


def packed_as(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_code_waits_is_shown_approved_and_taken_back(site):
    digest = site.ask()
    assert not site.approvals.is_approved(digest, CODE)
    [asked] = site.approvals.pending()
    assert (asked.digest, asked.kind, asked.asker) == (digest, "code", "a key")
    assert site.approvals.find(digest[:6]) == digest
    shown = site.shown(digest)
    assert "new: project/model.py, 3 lines\n+class Net:\n+    lr = 0.1" in shown
    assert "new: project/data.py" in shown
    assert "new: fedctl/" not in shown
    assert f"files of fedctl's own are as in fedctl {fedctl.__version__}, which runs here" in shown
    site.approvals.approve(digest)
    assert site.approvals.is_approved(digest, CODE)
    assert (site.folder / "approved" / digest / "project" / "model.py").read_text() == "class Net:\n    lr = 0.1\n"
    assert site.approvals.pending() == []
    assert [asked.digest for asked in site.approvals.approved()] == [digest]
    assert site.approvals.find(digest[:6]) == digest
    site.ask()
    assert site.approvals.pending() == [], "what is approved is not asked for again"
    site.approvals.withdraw(digest)
    assert not site.approvals.is_approved(digest, CODE)
    assert not list((site.folder / "approved").iterdir())


def test_new_code_is_shown_against_what_was_approved_last(site):
    first = site.ask()
    site.approvals.approve(first)
    (site.project / "model.py").write_text("class Net:\n    lr = 0.2\n")
    (site.project / "data.py").unlink()
    (site.project / "new.py").write_text("import os\n")
    second = site.ask()
    shown = site.shown(second).split("\n")
    assert shown[0] == f"against {first[:12]}, which was approved before:"
    assert "deleted: project/data.py" in shown
    assert {"-    lr = 0.1", "+    lr = 0.2", "+import os", "new: project/new.py, 2 lines"} <= set(shown)
    assert "+class Net:" not in shown, "what stays is not new"
    assert not site.approvals.is_approved(second, CODE)
    site.approvals.approve(second)
    (site.project / "model.py").write_text("class Net:\n    lr = 0.2\n\n")
    assert site.shown(site.ask()).startswith(f"against {second[:12]}")


def test_code_of_fedctls_that_is_not_fedctls_is_shown(site):
    own = (Path(fedctl.__file__).parent / "share.py").read_bytes()
    digest = site.ask(packed(project__model=b"x = 1\n", fedctl__share=own, fedctl__header=b"import socket\n"))
    shown = site.shown(digest)
    assert "new: fedctl/header.py, 2 lines\n+import socket" in shown
    assert "fedctl/share.py" not in shown
    assert "1 files below fedctl/ are not as in fedctl" in shown


def test_no_terminal_obeys_what_is_shown(site):
    evil = b"a = 1\x1b[2J\x1b]0;approved\x07\r# harmless\nb = 2 " + b" " * 300 + b"; steal()\nc = '\xe2\x80\xae'\n"
    shown = site.shown(
        site.ask(packed_as({"project/a.py": evil, "project/\x1b[1m.py": b"", "project/x.json": b"\xff\0"}))
    )
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert r"+a = 1\x1b[2J\x1b]0;approved\x07\r# harmless" in shown
    assert "+b = 2 [301 spaces] ; steal()" in shown
    assert r"+c = '\u202e'" in shown
    assert r"new: project/\x1b[1m.py" in shown
    assert "new, not text: project/x.json, 2 bytes" in shown


def test_a_file_too_long_to_compare_is_shown_whole(site):
    before = b"\n".join(b"x = %d" % number for number in range(30_000))
    first = site.ask(packed(project__model=before))
    site.approvals.approve(first)
    shown = site.shown(site.ask(packed(project__model=before + b"\nsteal()"))).split("\n")
    assert "changed: project/model.py, 30001 lines" in shown
    assert "+steal()" in shown
    assert "+x = 0" in shown


@pytest.mark.parametrize(
    "content",
    [
        packed_as({"../x.py": b""}),
        packed_as({"/x.py": b""}),
        packed_as({"project/../x.py": b""}),
        packed_as({"other/x.py": b""}),
        packed_as({"project/x.py": b""}, tarfile.SYMTYPE),
        packed_as({"project/x.py": b""}, tarfile.FIFOTYPE),
        packed_as({"project/x.py": b"1"})[:1024] + packed_as({"project/x.py": b"2"}),
        b"no tar at all",
        b"",
    ],
)
def test_what_is_no_bundle_is_not_shown_to_anybody(site, content):
    with pytest.raises(Refused, match="no bundle"):
        site.ask(content)
    assert site.approvals.pending() == []
    assert not list((site.folder / "pending").iterdir())


def test_bytes_that_are_not_those_of_the_digest_are_refused(site):
    blob = site.blobs / "x"
    blob.write_bytes(packed(project__model=b"x"))
    with pytest.raises(Refused, match="no bundle"):
        site.approvals.ask_code("0" * 64, blob, "a key")
    with pytest.raises(Refused, match="not a digest"):
        site.approvals.ask_code("../../x", blob, "a key")


def test_what_changed_while_it_waited_is_not_approved(site):
    digest = site.ask()
    (site.folder / "pending" / f"{digest}.tar").write_bytes(packed(project__model=b"steal()"))
    with pytest.raises(OwnerError, match="has changed since it came"):
        site.approvals.approve(digest)
    assert not site.approvals.is_approved(digest, CODE)
    assert site.approvals.pending() == []


def test_no_name_but_a_digest_is_approved(site):
    (site.folder / "approved").mkdir()
    (site.folder / "approved" / "x.json").write_text("{}")
    for name in ("x", "", "../approved/x", None, 5, "0" * 63, "0" * 64 + "\n"):
        assert not site.approvals.is_approved(name, CODE)


def test_what_waits_is_bounded(site, monkeypatch):
    mine = [site.ask(packed(project__model=b"%d" % number)) for number in range(7)]
    assert [asked.digest for asked in site.approvals.pending()] == mine[2:], "a key's own oldest give way"
    assert len(list((site.folder / "pending").iterdir())) == 10
    monkeypatch.setattr(module, "MOST", 6)
    other = site.ask(packed(project__model=b"other"), asker="another")
    with pytest.raises(Refused, match="6 requests wait for the owner"):
        site.ask(packed(project__model=b"third"), asker="a third")
    site.ask(packed(project__model=b"mine again"))
    assert other in {asked.digest for asked in site.approvals.pending()}, "nobody pushes another's out"
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(Refused, match="nobody could look through it"):
        site.ask(packed(project__model=b"x" * 2000))


def test_packages_wait_and_are_shown_against_the_last(site):
    site.approvals.ask_environment("1" * 64, NEEDS, "a key")
    assert site.shown("1" * 64).split("\n")[:3] == ["new: packages, 4 lines", "+Python 3.11", "+torch==2.13.0"]
    site.approvals.approve("1" * 64)
    assert site.approvals.is_approved("1" * 64, ENVIRONMENT)
    assert not site.approvals.is_approved("1" * 64, CODE), "that is another matter"
    wheels = {"evil-1.0-py3-none-any.whl": "5" * 64}
    more = {**NEEDS, "requirements": "torch==2.13.0\nnumpy\nevil @ https://example.org\n", "wheels": wheels}
    site.approvals.ask_environment("2" * 64, more, "a key")
    shown = site.shown("2" * 64).split("\n")
    assert "+evil @ https://example.org" in shown
    assert f"+evil-1.0-py3-none-any.whl {'5' * 64}" in shown
    assert "+torch==2.13.0" not in shown
    with pytest.raises(Refused, match="too long"):
        site.approvals.ask_environment("3" * 64, {**NEEDS, "requirements": "x" * 2**21}, "a key")


def test_what_was_not_asked_for_is_told_so(site):
    for attempt in (site.approvals.find, site.approvals.approve, lambda digest: list(site.approvals.diff(digest))):
        with pytest.raises(OwnerError, match="asked for"):
            attempt("7" * 64)
    site.approvals.ask_environment("7" + "1" * 63, NEEDS, "a key")
    site.approvals.ask_environment("7" + "2" * 63, NEEDS, "a key")
    with pytest.raises(OwnerError, match="2 digests begin with 7"):
        site.approvals.find("7")
    site.approvals.withdraw("7" + "1" * 63)
    assert site.approvals.find("7") == "7" + "2" * 63


def test_a_damaged_record_counts_for_nothing(site):
    digest = site.ask()
    (site.folder / "pending" / f"{digest}.json").write_text("{")
    assert site.approvals.pending() == []
    assert site.ask() == digest
    assert len(site.approvals.pending()) == 1


def test_all_that_is_kept_is_the_owners_alone(site):
    site.approvals.approve(site.ask())
    site.ask(packed(project__model=b"x"))
    for folder in ("approved", "pending"):
        assert (site.folder / folder).stat().st_mode & 0o077 == 0


def test_a_copy_of_the_owners_part_knows_fedctls_files_by_their_list(tmp_path):
    copy = tmp_path / "fedctl" / "node" / "owner"
    copy.mkdir(parents=True)
    for package in (tmp_path / "fedctl", tmp_path / "fedctl" / "node", copy):
        (package / "__init__.py").write_text("__version__ = '0.1.0'")
    (copy / "known.py").write_bytes(Path(known.__file__).read_bytes())
    code = "import json, fedctl.node.owner.known as k; print(json.dumps(k.known()))"

    def told():
        done = subprocess.run(
            [sys.executable, "-S", "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    assert told() == {}, "nothing is taken for fedctl's where nobody can say so"
    (tmp_path / "fedctl" / "known.json").write_bytes(known.as_json())
    listed = told()
    assert listed == known.known()
    assert (
        listed["fedctl/node/agent.py"]
        == hashlib.sha256(Path(known.__file__, "../../agent.py").resolve().read_bytes()).hexdigest()
    )


def test_lines_are_shown_as_they_are_where_they_do_no_harm():
    assert comparison.safe("\tx = 'é'  # ok") == "\tx = 'é'  # ok"
    deep = "+" + "    " * 20 + "deep()"
    assert comparison.safe(deep) == deep, "indentation hides nothing"
    assert comparison.safe("+" + " " * 200 + "steal()") == "+ [200 spaces] steal()"
