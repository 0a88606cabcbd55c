"""What an owner's policy lets tasks do: by real tasks, as the coordinator sends them, on real files."""

import json
import os
import time
from pathlib import Path

import pytest

from fedctl.node.agent import Refused
from fedctl.node.owner import rules
from fedctl.node.owner.approvals import Approvals
from fedctl.node.owner.terms import (
    Data,
    DifferentialPrivacy,
    Limits,
    Policy,
    SecureAggregation,
)
from fedctl.privacy import DifferentialPrivacy as Noise
from fedctl.privacy import Privacy
from fedctl.privacy import SecureAggregation as Masks
from fedctl.records import Task, TaskKey

DIGEST = "3f2a" * 16


class Site:
    """A node with approved code, data, and what is none of a task's business."""

    def __init__(self, folder: Path) -> None:
        self.bundle, self.folder, self.data = folder / "bundle", folder / "run", folder / "xrays"
        for place in (self.bundle / "project" / "lib", self.folder, self.data / "train", folder / "else"):
            place.mkdir(parents=True)
        for name in ("model.py", "data.py", "averaging.py", "lib/__init__.py", "lib/rule.py", "subprocess.py"):
            (self.bundle / "project" / name).touch()
        rule = "from os import system\nfrom subprocess import Popen\n\nclass Own:\n    class Inner: ...\n"
        (self.bundle / "project" / "lib" / "rule.py").write_text(rule)
        (folder / "else" / "secret").touch()
        (self.data / "out").symlink_to(folder / "else")
        self.link = folder / "link"
        self.link.symlink_to(self.data)
        self.secret = folder / "else" / "secret"
        self.policy = Policy(data=Data(paths=(str(self.link),)))

    def refusal(self, policy: Policy | None = None, *, letter: str = "a", trainings: int = 0, **fields) -> str | None:
        kinds = {"a": "train", "s": "alone", "e": "evaluate", "f": "finetune", "k": "keys"}
        task = Task(
            **{
                "key": TaskKey(round=1, node="alice", kind=kinds[letter]),
                "seed": 1,
                "model": "model.py:Net",
                "model_args": {"lr": 0.1},
                "data": "data.py:Rows",
                "data_args": {"root": str(self.data / "train"), "name": "digits"},
                "trainer": {"max_epochs": 1, "accelerator": "auto", "devices": "auto"},
                **fields,
            }
        )
        wire = json.loads(json.dumps(task.to_json()))
        return rules.refusal(policy or self.policy, wire, bundle=self.bundle, folder=self.folder, trainings=trainings)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_a_task_in_line_with_the_policy_may_start(site):
    assert site.refusal() is None
    assert site.refusal(callbacks=({"class": "averaging.py:EMA", "args": {"decay": 0.9}},)) is None
    assert site.refusal(local={"name": "fedprox", "mu": 0.1}, codec={"up": [{"name": "topk", "keep": 0.1}]}) is None
    assert site.refusal(local={"name": "lib/rule.py:Own"}) is None
    assert site.refusal(local={"name": "lib.rule:Own"}) is None
    assert site.refusal(trainer={"max_epochs": 1, "logger": False, "strategy": "auto", "profiler": None}) is None


@pytest.mark.parametrize(
    "text",
    [
        "{secret}",
        "{data}/../else/secret",
        "{data}/out/secret",
        "{link}/out",
        "{data}-other",
        "~",
        "~/x",
        "~nobody/x",
        "$HOME/.ssh/id_ed25519",
        "${{HOME}}/x",
        "../../else/secret",
        "..",
        "lib/../../else/secret",
        "/",
        "//{secret}",
        " {secret}",
        "{data}/train:{secret}",
        "{data},{secret}",
        "--root={secret}",
        '["{secret}"]',
        "file:{secret}",
        "file://{data}/train",
        "zip://x::{secret}",
        "https://example.org/collect",
        "/proc/self/environ",
        "{data}/*/../../else/*",
        "a\0b/c",
    ],
)
@pytest.mark.parametrize("where", ["data_args", "model_args", "finetune"])
def test_no_argument_names_a_path_outside(site, text, where):
    text = text.format(secret=site.secret, data=site.data, link=site.link)
    for value in ({"root": text}, {"root": ["x", {"deep": text}]}, {text: 1}):
        assert site.refusal(**{where: value}) is not None


def test_every_place_where_a_task_has_arguments_is_looked_at(site):
    path = str(site.secret)
    assert "lets no task name" in site.refusal(callbacks=({"class": "averaging.py:EMA", "args": {"to": path}},))
    assert "lets no task name" in site.refusal(local={"name": "fedprox", "to": path})
    assert "lets no task name" in site.refusal(codec={"up": [{"name": "topk", "to": path}]})
    assert "lets no task name" in site.refusal(trainer={"precision": path})


@pytest.mark.parametrize(
    "text",
    [
        "{data}",
        "{link}/train",
        "{data}/train/../train",
        "{data}/new/file.csv",
        "org/model",
        "mean",
        "20:30",
        "a,b",
        "~no-such-account/x",
        "",
    ],
)
def test_what_is_open_or_no_path_may_be_named(site, text):
    assert site.refusal(data_args={"root": text.format(data=site.data, link=site.link)}) is None


def test_without_open_paths_none_may_be_named(site):
    assert "it is in none of the paths that are open" in site.refusal(Policy())
    assert site.refusal(Policy(), data_args={"site": 3}) is None


def test_arguments_that_are_nested_without_end_are_no_task(site):
    value = []
    for _ in range(200):
        value = [value]
    with pytest.raises(Refused, match="nested too deeply"):
        site.refusal(data_args={"root": value})


@pytest.mark.parametrize(
    "fields",
    [
        {"local": {"name": "subprocess:Popen", "args": ["id"]}},
        {"local": {"name": "subprocess.py:Popen", "args": ["id"]}},
        {"local": {"name": "lib/rule.py:Popen", "args": ["id"]}},
        {"local": {"name": "lib/rule.py:Inner"}},
        {"local": {"name": "lib/rule.py:"}},
        {"codec": {"up": [{"name": "lib.rule:system", "command": "id"}]}},
        {"local": {"name": "pty:spawn"}},
        {"local": {"name": None}},
        {"local": {"name": "torch.hub:load"}},
        {"local": {"name": "../else/x.py:Y"}},
        {"local": {"name": "/else/x.py:Y"}},
        {"local": {"name": "fedctl.node.worker:main"}},
        {"codec": {"up": [{"name": "subprocess:Popen", "args": ["id"]}]}},
        {"codec": {"down": [{"name": "os:system", "command": "id"}]}},
        {"model": "torch.nn:Linear"},
        {"model": "Net"},
        {"data": "missing.py:Rows"},
        {"callbacks": ({"class": "pytorch_lightning.callbacks:ModelCheckpoint", "args": {}},)},
        {"callbacks": ({"class": "fedprox", "args": {}},)},
    ],
)
def test_no_class_is_named_but_those_of_the_approved_code_and_of_fedctl(site, fields):
    assert "is neither in the approved code nor one of fedctl's own" in site.refusal(**fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("default_root_dir", "x"),
        ("logger", True),
        ("enable_checkpointing", True),
        ("enable_checkpointing", 0),
        ("plugins", ["x"]),
        ("profiler", "simple"),
        ("strategy", "ddp_spawn"),
        ("num_nodes", 2),
        ("num_nodes", True),
        ("model_registry", "me/model"),
        ("callbacks", []),
        ("of_tomorrow", 1),
    ],
)
def test_no_option_of_the_trainer_writes_connects_or_loads_code(site, name, value):
    assert f"does not allow `task.trainer: {name}`" in site.refusal(trainer={"max_epochs": 1, name: value})


def test_gpus_that_are_not_allowed_are_not_asked_for(site):
    none = site.policy._replace(limits=Limits(gpus=()))
    assert "allows no GPU, and the task asks for the accelerator 'gpu'" in site.refusal(
        none, trainer={"accelerator": "gpu"}
    )
    for allowed in ({"accelerator": "cpu"}, {"accelerator": "auto"}, {}):
        assert site.refusal(none, trainer=allowed) is None
    assert site.refusal(none._replace(limits=Limits(gpus=(0,))), trainer={"accelerator": "gpu", "devices": 1}) is None


def test_programs_are_run_by_the_owners_list_alone(site):
    program, other = site.data / "may-train", site.data / "other"
    for each in (program, other):
        each.touch()
    policy = site.policy._replace(commands=(str(program),))

    def when(*command):
        return {"when": {"hours": [], "days": [], "command": list(command)}}

    assert site.refusal(policy, **when(str(program), "--quiet")) is None
    assert site.refusal(policy, **when()) is None
    for command in (
        "/bin/sh",
        str(other),
        "may-train",
        f"{site.data}/../xrays/out/may-train",
        os.path.relpath(program),
    ):
        assert "does not allow the program" in site.refusal(policy, **when(command))
    assert "does not allow the program" in site.refusal(**when(str(program)))


def test_updates_leave_masked_where_the_owner_asks_for_it(site):
    policy = site.policy._replace(secure_aggregation=SecureAggregation(required=True))
    masked = Privacy(secure_aggregation=Masks()).to_json()
    assert "lets updates leave by secure aggregation alone" in site.refusal(policy)
    assert site.refusal(policy, privacy=masked) is None
    assert "one node's" in site.refusal(policy, letter="s", privacy=masked), "a model trained alone is in no sum"
    for letter in "efk":
        assert site.refusal(policy, letter=letter) is None, "nothing of the data leaves in an update"


def test_noise_is_of_a_mode_that_the_owner_allows(site):
    policy = site.policy._replace(differential_privacy=DifferentialPrivacy(epsilon=8.0))

    def privacy(mode, *, masks=True):
        noise = Noise(mode=mode, noise=1.0, clip=0.1)
        return Privacy(differential_privacy=noise, secure_aggregation=Masks() if masks else None).to_json()

    assert site.refusal(policy, privacy=privacy("distributed")) is None
    assert site.refusal(policy, privacy=privacy("local", masks=False)) is None
    assert site.refusal(policy, letter="s", privacy=privacy("local", masks=False)) is None
    assert "of the mode distributed or local, and the task has none" in site.refusal(policy)
    assert "the task has mode central" in site.refusal(policy, privacy=privacy("central"))
    assert "hides in masked sums alone" in site.refusal(policy, privacy=privacy("distributed", masks=False))
    assert "the task has mode distributed" in site.refusal(policy, letter="s", privacy=privacy("distributed"))
    central = site.policy._replace(differential_privacy=DifferentialPrivacy(epsilon=8.0, modes=("central",)))
    assert site.refusal(central, privacy=privacy("central", masks=False)) is None


def test_trainings_are_counted(site):
    policy = site.policy._replace(rounds=3)
    assert site.refusal(policy, trainings=2) is None
    for letter in "asf":
        assert "allows 3 trainings in all" in site.refusal(policy, letter=letter, trainings=3)
    assert site.refusal(policy, letter="e", trainings=3) is None


@pytest.mark.parametrize("task", [{}, {"key": "r0001/a/a1"}, {"key": "x"}, {"key": 1}, {"key": "r0001/../a1"}])
def test_what_is_no_task_is_refused(site, task):
    with pytest.raises(Refused):
        rules.refusal(site.policy, task, bundle=site.bundle, folder=site.folder, trainings=0)


def test_hours_are_the_owners(site):
    policy = Policy(hours=((20 * 60, 6 * 60),), days=(0, 1, 2, 3, 4))
    friday_noon = time.strptime("2026-11-20 12:00:00", "%Y-%m-%d %H:%M:%S")
    assert rules.closed(policy, friday_noon) == {
        "may": False,
        "why": "outside its owner's hours until Fri 20:00",
        "seconds": 8 * 3600.0,
    }
    saturday_night = time.strptime("2026-11-21 05:59:59", "%Y-%m-%d %H:%M:%S")
    assert rules.closed(policy, saturday_night)["may"], "a span counts to the day on which it begins"
    assert rules.closed(Policy(), friday_noon)["may"]


def approvals(folder: Path, **digests: str) -> Approvals:
    """With what was approved, by its kind."""
    made = Approvals(folder)
    made.approvals.mkdir(parents=True)
    for kind, digest in digests.items():
        record = {"digest": digest, "kind": kind, "at": 0.0, "asker": "a key"}
        (made.approvals / f"{digest}.json").write_text(json.dumps(record))
    return made


def test_a_worker_runs_approved_code_by_an_approved_python(site, tmp_path):
    spec = {"bundle": DIGEST, "python": "/opt/ml/bin/python", "slots": 1, "idle_s": 60, "preload": ["torch"]}
    policy = Policy(pythons=("/opt/ml/bin/python", "~/venv/bin/python"))
    approved, none = approvals(tmp_path / "one", code=DIGEST), Approvals(tmp_path / "none")

    def refused(policy=policy, approvals=approved, **changes):
        return rules.refused_worker(policy, {**spec, **changes}, approvals)

    assert refused() is None
    assert refused(python=str(Path("~/venv/bin/python").expanduser())) is None
    assert "`fedctl node approve 3f2a3f2a3f2a`" in refused(approvals=none)
    assert refused(policy._replace(code="any"), none) is None
    for python in (
        "/bin/sh",
        "/opt/ml/bin/../../../bin/sh",
        "/opt/ml/bin/python -c x",
        "",
        None,
        ["/opt/ml/bin/python"],
    ):
        assert "does not allow the Python" in refused(python=python)
    assert "does not allow 'os' to be imported" in refused(preload=["torch", "os"])
    environment = {"environment": "5" * 64, "python": "/bin/sh"}
    assert "the packages are not approved there" in refused(**environment)
    swapped = approvals(tmp_path / "swapped", environment=DIGEST, code="5" * 64)
    assert "the code is not approved there" in refused(approvals=swapped)
    assert refused(approvals=approvals(tmp_path / "two", code=DIGEST, environment="5" * 64), **environment) is None
    assert refused(policy._replace(environments="any"), **environment) is None
    assert "use /opt/ml/bin/python or ~/venv" in refused(policy._replace(environments="none"), **environment)


def test_of_paths_that_are_not_open_nothing_is_told(site):
    assert rules.refused_paths(site.policy, [str(site.data), str(site.link / "train")]) is None
    for path in (str(site.secret), "~", "train", "", "./x", None, str(site.data / "out" / "secret")):
        assert rules.refused_paths(site.policy, [path]) is not None


def test_a_trial_imports_modules_of_the_approved_code(site):
    assert rules.refused_modules(["model", "lib.rule", "lib"], site.bundle) is None
    for module in ("os", "subprocess", "antigravity", "..model", "lib/../../x", "", None, "fedctl.node.worker"):
        assert "is not in the approved code" in rules.refused_modules([module], site.bundle)
