"""`scaffold` copies a template whole, overwrites nothing unasked, and says in a sentence what is in the way."""

import os
import stat
import tomllib
from pathlib import Path

import pytest

from fedctl import scaffold as module
from fedctl.errors import StateError, UsageError
from fedctl.scaffold import scaffold, templates

ROOT = Path(__file__).parents[2]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder of templates with one in it, and with what trying it out has left."""
    folder = tmp_path / "templates"
    contents = {
        "toy/fed.yaml": "name: toy\n",
        "toy/README.md": "# toy\n\n\nA federation of toys.\n\nMore.\n",
        "toy/more/deep.txt": "deep\n",
        "toy/__pycache__/model.cpython-311.pyc": "no",
        "toy/runs/latest/run.json": "no",
        "toy/.DS_Store": "no",
        "notes/README.md": "# not a template: it has no fed.yaml\n",
    }
    for path, text in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    monkeypatch.setattr(module, "TEMPLATES_FOLDER", folder)
    return folder / "toy"


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_templates_that_come_with_fedctl():
    found = {template.name: template.summary for template in templates()}
    assert list(found) == ["blank", "digits", "hospitals", "lora", "wearables"]
    assert all(summary.endswith(".") and len(summary) <= 120 for summary in found.values())


def test_a_template_is_named_by_its_folder_and_summed_up_by_its_readme(toy):
    (template,) = templates()
    assert (template.name, template.summary, template.folder) == ("toy", "A federation of toys.", toy)


@pytest.mark.parametrize("name", ["blank", "digits", "hospitals", "lora", "wearables"])
def test_a_copy_is_exact(name, tmp_path):
    target = tmp_path / "some" / "where"
    made = scaffold(target, name)
    source = module.TEMPLATES_FOLDER / name
    assert made.folder == target
    assert made.template == name
    assert {"README.md", "data.py", "fed.yaml", "model.py"} <= set(map(str, made.files))
    assert tree(target) == {str(path): (source / path).read_text() for path in made.files}


def test_digits_is_what_one_gets_unasked(tmp_path):
    assert scaffold(tmp_path).template == "digits"


def test_what_trying_a_template_out_left_is_not_copied(toy, tmp_path):
    made = scaffold(tmp_path / "demo", "toy")
    assert set(tree(tmp_path / "demo")) == {"fed.yaml", "README.md", "more/deep.txt"}
    assert made.files == (Path("README.md"), Path("fed.yaml"), Path("more/deep.txt"))


def test_modes_are_those_of_new_files_whatever_the_template_has(toy, tmp_path):
    (toy / "fed.yaml").chmod(0o500)
    before = os.umask(0o022)
    try:
        scaffold(tmp_path / "demo", "toy")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "demo" / "fed.yaml").stat().st_mode) == 0o644


def test_nothing_is_written_when_one_file_is_there(toy, tmp_path):
    target = tmp_path / "my demo"
    target.mkdir()
    (target / "fed.yaml").write_text("mine\n")
    with pytest.raises(UsageError) as refused:
        scaffold(target, "toy")
    assert refused.value.message == f"already there: {target}/fed.yaml"
    assert refused.value.hint == f"`fedctl init '{target}' --template toy --force` overwrites them"
    assert tree(target) == {"fed.yaml": "mine\n"}


def test_force_overwrites_its_own_files_and_no_others(toy, tmp_path):
    target = tmp_path / "demo"
    target.mkdir()
    (target / "fed.yaml").write_text("mine\n")
    (target / "notes.txt").write_text("mine too\n")
    scaffold(target, "toy", force=True)
    assert tree(target)["fed.yaml"] == "name: toy\n"
    assert tree(target)["notes.txt"] == "mine too\n"


def test_a_folder_in_the_way_stops_even_force(toy, tmp_path):
    target = tmp_path / "demo"
    (target / "fed.yaml").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"already there: .*/fed\.yaml") as refused:
        scaffold(target, "toy", force=True)
    assert refused.value.hint == "these are folders: move them away"
    assert tree(target) == {}


def test_links_are_in_the_way_and_are_not_followed(toy, tmp_path):
    target = tmp_path / "demo"
    target.mkdir()
    precious = tmp_path / "precious.yaml"
    (target / "fed.yaml").symlink_to(precious)
    with pytest.raises(UsageError, match="already there"):
        scaffold(target, "toy")
    scaffold(target, "toy", force=True)
    assert not precious.exists()
    assert not (target / "fed.yaml").is_symlink()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean `digits`? the templates are blank, digits, hospitals, lora, wearables"),
        ("quantum", "the templates are blank, digits, hospitals, lora, wearables"),
        ("../digits", "did you mean `digits`? the templates are blank, digits, hospitals, lora, wearables"),
    ],
)
def test_an_unknown_template(name, hint, tmp_path):
    with pytest.raises(UsageError) as refused:
        scaffold(tmp_path / "demo", name)
    assert refused.value.message == f"no template is called {name!r}"
    assert refused.value.hint == hint
    assert not (tmp_path / "demo").exists()


def test_a_file_where_the_folder_should_be(toy, tmp_path):
    (tmp_path / "demo").write_text("mine\n")
    with pytest.raises(StateError, match="is a file, not a folder"):
        scaffold(tmp_path / "demo", "toy")
    with pytest.raises(StateError, match=r"cannot write in .*/demo/inner: not a directory"):
        scaffold(tmp_path / "demo" / "inner", "toy", force=True)


def test_a_folder_that_cannot_be_written(toy, tmp_path, monkeypatch):
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StateError) as refused:
        scaffold(tmp_path / "demo", "toy")
    assert refused.value.message == f"cannot write in {tmp_path}/demo: permission denied"
    assert tree(tmp_path / "demo") == {}


def test_an_installation_without_templates(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEMPLATES_FOLDER", tmp_path)
    assert templates() == ()
    with pytest.raises(StateError, match="no templates in"):
        scaffold(tmp_path / "demo")


def test_a_wheel_has_the_templates_inside_the_package_and_a_checkout_beside_it(tmp_path):
    package = tmp_path / "fedctl"
    (tmp_path / "templates").mkdir()
    assert module._templates_folder(package) == tmp_path / "templates"
    (package / "_templates").mkdir(parents=True)
    assert module._templates_folder(package) == package / "_templates"


def test_the_wheel_is_told_to_take_the_templates_along():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"templates": "fedctl/_templates"}
