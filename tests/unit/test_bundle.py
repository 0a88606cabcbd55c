import ast
import errno
import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from fedctl import bundle
from fedctl.errors import ConfigError
from fedctl.federation import Federation, Node, TaskSpec

MODEL = "import pytorch_lightning as pl\nclass Net(pl.LightningModule): ...\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "data.py").write_text("import torch\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").write_text("")
    return tmp_path


def federation(folder, model="model.py:Net", data="data.py:Data"):
    return Federation(
        name="x", folder=folder, task=TaskSpec(model=model, data=data), nodes=(Node(name="a", host="local"),)
    )


def members(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_the_same_files_give_the_same_bytes(folder):
    first = bundle.pack(federation(folder))
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    (folder / "model.py").chmod(0o755)
    assert bundle.pack(federation(folder)) == first
    (folder / "data.py").write_text("import torch \n")
    assert hashlib.sha256(bundle.pack(federation(folder))).digest() != hashlib.sha256(first).digest()


def test_the_users_code_and_the_node_part_are_in_it(folder):
    found = members(bundle.pack(federation(folder)))
    assert found["project/model.py"] == MODEL.encode()
    assert {"project/lib/__init__.py", "fedctl/node/agent.py", "fedctl/records.py"} <= found.keys()
    assert not {"fedctl/cli/__init__.py", "fedctl/connection.py"} & found.keys()


@pytest.mark.parametrize(
    "name",
    [
        "data/patients.csv",
        "patients.csv",
        "images.npz",
        "fed.yaml",
        "secrets.yaml",
        "credentials.json",
        "api-token.txt",
        "token.json",
        "tokens.txt",
        "tokeninfo.json",
        "tokenizer_token.json",
        "db_password.ini",
        "id_rsa.txt",
        "secrets.py",
        "lib/credentials.py",
        "secrets/hospital.yaml",
        "data/__init__.py",
        "Data/rows.json",
        "server.p12",
        "runs/one/run.json",
        ".env",
        ".git/config",
        ".venv/lib/x.py",
        "venv/lib/x.py",
        "id_ed25519",
        "server.key",
        "server.pem",
        "known_hosts",
        "model.ckpt",
        "model.safetensors",
        "lib/data/scan.npy",
        "lib/__pycache__/x.pyc",
        "x.egg-info/PKG-INFO",
        "lightning_logs/version_0/hparams.yaml",
        "train.log",
    ],
)
def test_data_and_secrets_and_leftovers_stay_at_home(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret")
    assert f"project/{name}" not in members(bundle.pack(federation(folder)))


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "secret_sharing.py",
        "id_mapping.py",
        "password_head.py",
    ],
)
def test_code_about_secrets_is_code(folder, name):
    (folder / name).write_text("code")
    assert f"project/{name}" in members(bundle.pack(federation(folder)))
    assert bundle.left_out(folder) == {}


def fill(folder, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def test_what_looks_like_code_and_stays_is_told(folder):
    fill(
        folder,
        "data/__init__.py",
        "data/deep/labels.json",
        "data/rows.csv",
        "lib/data/x.py",
        "secrets.py",
        "tokens.txt",
    )
    assert bundle.left_out(folder) == {"data/": 2, "secrets.py": 1, "tokens.txt": 1, "lib/data/": 1}


def test_what_nobody_misses_is_not_told(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    fill(outside, "rows.json")
    (folder / "data").symlink_to(outside)
    fill(folder, "fed.yaml", "known_hosts", "build/x.py", "secrets.py", ".hidden/x.py", "runs/one/run.json")
    fill(folder, "env/pyvenv.cfg", "env/lib/x.py", "lib/__pycache__/x.py", "lib/data/rows.csv", "x.egg-info/names.txt")
    (folder / ".gitignore").write_text("build/\nsecrets.py\n")
    assert bundle.left_out(folder) == {}


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("data.loader", "data/ is here and goes to no node"),
        ("data", "data/ is here"),
        ("secrets", "secrets.py is here"),
        ("lib.own.net", "lib/own/ is here"),
        ("lib.net", "lib/net.py is here"),
        ("wandb", None),
        ("torch", None),
        ("lib.nothing", None),
        ("x" * 5000, None),
        ("..x", None),
    ],
)
def test_a_module_that_stays_explains_why_it_is_missing_there(folder, named, said):
    (folder / "data.py").unlink()
    fill(folder, "data/loader.py", "secrets.py", "lib/own/net.py", "lib/net.py", "wandb/run/x.py")
    (folder / ".gitignore").write_text("net.py\nwandb/\n")
    hint = bundle.explain_missing(folder, f"model.py:1: ModuleNotFoundError: No module named '{named}'")
    assert hint is None if said is None else hint.startswith(said)


def test_links_and_pipes_are_not_followed(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret")
    (folder / "file.txt").symlink_to(outside / "secret.txt")
    (folder / "folder").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    assert b"secret" not in members(bundle.pack(federation(folder))).values()


def test_what_is_too_large_is_refused_with_the_largest_file(folder):
    with (folder / "scans.json").open("wb") as file:
        file.truncate(bundle.LARGEST + 1)
    with pytest.raises(ConfigError, match=r"over 50 MB; the largest file is scans\.json \(50 MB\)") as caught:
        bundle.pack(federation(folder))
    assert "a folder named `data`" in caught.value.hint


def test_whatever_the_node_part_imports_of_fedctl_is_in_the_bundle(folder):
    found = members(bundle.pack(federation(folder)))
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in found
        if name.startswith("fedctl/")
    }
    for name, source in found.items():
        if name.startswith("fedctl/"):
            for module in fedctl_imports(ast.parse(source)):
                assert module in modules, f"{name} imports {module}"


def fedctl_imports(tree):
    """The modules of fedctl that a source names, `from fedctl import x` counting as `fedctl.x` where that is one."""
    package = Path(bundle.__file__).parent.parent
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "fedctl")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            if node.module.partition(".")[0] == "fedctl":
                yield node.module
                for alias in node.names:
                    inner = package / node.module.replace(".", "/") / alias.name
                    if inner.is_dir() or inner.with_suffix(".py").is_file():
                        yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize(
    ("source", "flavour"),
    [
        (MODEL, "pytorch_lightning"),
        ("import lightning as L\n", "lightning.pytorch"),
        ("import lightning.pytorch as pl\n", "lightning.pytorch"),
        ("from lightning.pytorch import LightningModule\n", "lightning.pytorch"),
        ("from lightning import LightningModule\n", "lightning.pytorch"),
        ("from pytorch_lightning import LightningModule\n", "pytorch_lightning"),
        ("import torch\n", "pytorch_lightning"),
        ("this is no Python\n", "pytorch_lightning"),
    ],
)
def test_the_lightning_that_the_code_names_is_preloaded(folder, source, flavour):
    (folder / "model.py").write_text(source)
    assert bundle.preload(federation(folder)) == ("torch", flavour)


def test_the_flavour_of_the_data_counts_too_and_missing_files_do_not_matter(folder):
    (folder / "model.py").unlink()
    (folder / "data.py").write_text("def late():\n    import lightning\n")
    assert bundle.preload(federation(folder)) == ("torch", "lightning.pytorch")


def names(folder):
    return {str(path.relative_to(folder)) for path in bundle.project_files(folder)}


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        ("old/", {"old/model.py"}),
        ("/model.py", {"model.py"}),
        ("model.py", {"model.py", "old/model.py"}),
        ("*.py\n!data.py", {"model.py", "lib/__init__.py", "old/model.py"}),
        ("# a comment\n\n", set()),
        ("**/__init__.py", {"lib/__init__.py"}),
        ("old/\n!old/model.py", {"old/model.py"}),
    ],
)
def test_what_gitignore_names_stays_at_home(folder, rules, gone):
    (folder / "old").mkdir()
    (folder / "old" / "model.py").write_text("")
    before = names(folder)
    (folder / ".gitignore").write_text(rules)
    assert before - names(folder) == gone


def test_a_nested_gitignore_speaks_of_its_own_folder_and_goes_before_those_above(folder):
    for place in (folder, folder / "lib"):
        (place / "scratch.json").write_text("{}")
        (place / "notes.txt").write_text("")
    (folder / ".gitignore").write_text("notes.txt\n")
    (folder / "lib" / ".gitignore").write_text("scratch.json\n!notes.txt\n")
    assert names(folder) == {"model.py", "data.py", "scratch.json", "lib/__init__.py", "lib/notes.txt"}


def test_gitignore_brings_nothing_back_that_never_travels(folder):
    (folder / ".gitignore").write_text("!secrets.yaml\n!.env\n!data/\n!data/**\n!*.ckpt\n")
    (folder / "data").mkdir()
    for name in ("secrets.yaml", ".env", "data/rows.json", "model.ckpt"):
        (folder / name).write_text("secret")
    assert names(folder) == {"model.py", "data.py", "lib/__init__.py"}


class TestInARepository:
    """What git ignores above the folder counts too; held against git itself."""

    FILES = frozenset({"model.py", "notes.txt", "lib/net.py", "lib/notes.txt"})

    @pytest.fixture
    def repository(self, folder):
        """`fed/` with the user's files in a repository."""
        fill(folder / "work" / "fed", *self.FILES)
        subprocess.run(["git", "init", "--quiet", folder / "work"], check=True)
        return folder / "work"

    @pytest.mark.parametrize(
        ("rules", "gone"),
        [
            ({".gitignore": "notes.txt"}, {"notes.txt", "lib/notes.txt"}),
            ({".gitignore": "/fed/notes.txt"}, {"notes.txt"}),
            ({".gitignore": "fed/lib/"}, {"lib/net.py", "lib/notes.txt"}),
            ({".gitignore": "notes.txt", "fed/.gitignore": "!/notes.txt"}, {"lib/notes.txt"}),
            ({".git/info/exclude": "notes.txt"}, {"notes.txt", "lib/notes.txt"}),
            ({".git/info/exclude": "*.txt", ".gitignore": "!/fed/notes.txt"}, {"lib/notes.txt"}),
            ({".gitignore": "*\n!*/\n!*.py"}, {"notes.txt", "lib/notes.txt"}),
            ({".gitignore": "*\n!fed/\n!lib/\n!model.py"}, {"notes.txt", "lib/net.py", "lib/notes.txt"}),
            ({"fed/.gitignore": "*\n!*/\n!*.py"}, {"notes.txt", "lib/notes.txt"}),
            ({"fed/.gitignore": "lib/*\n!lib/net.py"}, {"lib/notes.txt"}),
            ({"fed/.gitignore": "lib\n!lib/net.py"}, {"lib/net.py", "lib/notes.txt"}),
            ({"fed/.gitignore": "lib/**"}, {"lib/net.py", "lib/notes.txt"}),
            ({".gitignore": "!\n\\\n/fed/notes.txt"}, {"notes.txt"}),
        ],
    )
    def test_the_rules_above_count(self, repository, rules, gone):
        for name, text in rules.items():
            (repository / name).write_text(text)
        command = ["git", "-c", "core.excludesFile=", "ls-files", "--others", "--exclude-standard", ":!*.gitignore"]
        seen = subprocess.run(command, cwd=repository / "fed", capture_output=True, text=True, check=True)
        assert names(repository / "fed") == self.FILES - gone == set(seen.stdout.split())

    @pytest.mark.parametrize("rules", ["fed/", "/fed", "*", "fed/\n*.md"])
    def test_a_folder_that_is_ignored_as_a_whole_was_asked_for_all_the_same(self, repository, rules):
        (repository / ".gitignore").write_text(rules)
        assert names(repository / "fed") == self.FILES
        (repository / ".gitignore").write_text(f"{rules}\nnotes.txt")
        assert names(repository / "fed") == {"model.py", "lib/net.py"}

    def test_what_is_above_the_repository_or_beside_the_folder_does_not_count(self, repository):
        (repository.parent / ".gitignore").write_text("*.py")
        fill(repository, "other/model.py")
        (repository / "other" / ".gitignore").write_text("*.py")
        assert names(repository / "other" / ".." / "fed") == self.FILES

    def test_a_gitignore_that_cannot_be_read_is_an_error(self, repository, monkeypatch):
        def refuse(path, **_):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        (repository / ".gitignore").write_text("x")
        (repository / ".git" / "info" / "exclude").unlink(missing_ok=True)
        monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
        with pytest.raises(ConfigError, match=r"work/\.gitignore: cannot be read: Permission denied"):
            names(repository / "fed")


def test_no_file_of_a_federation_travels_whatever_it_is_called(folder):
    """It names the other nodes and how to reach them."""
    (folder / "hospitals.yaml").write_text("name: h\ntask: {model: model.py:Net}\nnodes:\n  - name: alice\n")
    (folder / "old.yml").write_text('"nodes": []\n"task": {}\n')
    (folder / "settings.yaml").write_text("task: triage\nlr: 0.1\n")
    assert {"hospitals.yaml", "old.yml", "settings.yaml"} & set(names(folder)) == {"settings.yaml"}
