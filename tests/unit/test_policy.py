"""policy.yaml: what it means, what is wrong in it, and how it reads in plain words."""

from pathlib import Path

import pytest
import yaml

from fedctl.node.owner import policy
from fedctl.node.owner.policy import PolicyError
from fedctl.node.owner.terms import (
    Data,
    DifferentialPrivacy,
    Leave,
    Limits,
    Policy,
    SecureAggregation,
    Tensors,
)
from fedctl.node.owner.wording import summary

EXAMPLE = Path(__file__).parents[2] / "docs" / "policy.yaml.example"


def read(tmp_path, text):
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    return policy.load(file)


def test_the_example_has_every_key_and_means_what_it_says():
    assert policy.load(EXAMPLE) == Policy(
        pythons=("/opt/ml/bin/python",),
        data=Data(paths=("/srv/xrays",)),
        commands=("/usr/local/bin/may-train",),
        leave=Leave(
            tensors=Tensors(only=("encoder.*", "head.*"), kept=("*.running_mean",)), metrics=("val_loss", "val_acc")
        ),
        secure_aggregation=SecureAggregation(required=True, least=5),
        differential_privacy=DifferentialPrivacy(epsilon=8.0),
        rounds=200,
        hours=((20 * 60, 6 * 60),),
        days=(0, 1, 2, 3, 4),
        limits=Limits(cpus=4, memory=16 * 2**30, gpus=(0,), disk=50 * 2**30),
        network="none",
        files="own",
    )

    def keys(value):
        return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    known = dict.fromkeys(policy._POLICY)
    known.update(
        data={"paths": None},
        leave={"tensors": {"only": None, "except": None}, "metrics": None, "logs": None},
        secure_aggregation={"required": None, "least": None},
        differential_privacy={"modes": None, "epsilon": None, "delta": None},
        limits={"cpus": None, "memory": None, "gpus": None, "disk": None},
    )
    assert keys(yaml.safe_load(EXAMPLE.read_text())) == known


def test_what_is_not_said_is_closed(tmp_path):
    assert read(tmp_path, "# nothing\n") == Policy()
    terms = Policy()
    assert (terms.code, terms.environments, terms.data.paths, terms.commands) == ("approve", "approve", (), ())
    assert not terms.leave.logs
    assert terms.required == []
    assert read(tmp_path, "differential_privacy: {epsilon: 8.0}").required == ["differential_privacy"]
    assert read(tmp_path, "limits: {gpus: none}\nleave: {metrics: none}").limits.gpus == ()
    assert read(tmp_path, "limits: {gpus: all}\nleave: {metrics: all}").limits.gpus is None
    assert read(tmp_path, "days: sat-mon").days == (0, 5, 6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cod: any", "policy.yaml:1: cod: unknown key; did you mean `code`?"),
        ("\nlimits: {memry: 16G}", "policy.yaml:2: limits/memry: unknown key; did you mean `memory`?"),
        ("zzz: 1", "policy.yaml:1: zzz: unknown key; the keys are code, environments, pythons"),
        ("code: ask", 'policy.yaml:1: code: should be approve or any, not "ask"'),
        ("code: true", "code: should be approve or any, not true"),
        ("pythons: /usr/bin/python3", "pythons: should be a list of paths of Pythons"),
        ("data: {paths: [xrays]}", 'data/paths/0: should be a whole path, such as /srv/xrays or ~/xrays, not "xrays"'),
        ("data:\n  paths:\n    - /srv\n    - /srv/../etc", "policy.yaml:4: data/paths/1: should be a whole path"),
        ("data: /srv/xrays", 'data: should be a mapping with paths, not "/srv/xrays"'),
        ("commands: []", "commands: should be a list of paths of programs, not an empty list"),
        ("leave: {tensors: {only: []}}", "leave/tensors/only: should be a list of names or patterns"),
        ("leave: {metrics: some}", "leave/metrics: should be a list of names of metrics, or all or none"),
        ("leave: {logs: 1}", "leave/logs: should be true or false, not 1"),
        ("secure_aggregation: {least: 1}", "secure_aggregation/least: should be a whole number from 3, not 1: of two"),
        ("secure_aggregation: {least: true}", "should be a whole number from 3, not true"),
        ("secure_aggregation:", "secure_aggregation: should be a mapping with required or least, not empty"),
        ("differential_privacy: {epsilon: 8.0, modes: [centrl]}", "modes/0: should be central, distributed or local"),
        ("differential_privacy: {modes: [local]}", "differential_privacy: needs `epsilon`: without"),
        ("differential_privacy: {epsilon: 0}", "epsilon: should be a number over 0, not 0"),
        (
            "differential_privacy: {epsilon: 8.0, delta: 1.0}",
            "delta: should be a number between 0 and 1, such as 1.0e-5, not 1.0",
        ),
        ("differential_privacy: {delta: 1e-5}", "policy.yaml:1: `1e-5` is not the same to all readers: write it such"),
        ("rounds: 0", "rounds: should be a whole number from 1, not 0"),
        ("rounds: 2.5", "rounds: should be a whole number from 1, not 2.5"),
        ("hours: [20-06]", 'hours/0: should be a span such as "20:00-06:00", in quotes'),
        ('hours: ["25:00-26:00"]', "hours/0: should be a span"),
        ("days: [monday]", "days/0: should be a day such as mon, or several such as mon-fri"),
        ("limits: {memory: 16}", "limits/memory: should be a size such as 16G or 500M, not 16"),
        ("limits: {memory: 100M}", "limits/memory: should be 1024M or more: torch alone takes most of that"),
        ("limits: {disk: 1M}", "limits/disk: should be 256M or more"),
        ("limits: {cpus: 0}", "limits/cpus: should be a whole number from 1, not 0"),
        ("limits: {gpus: [cuda]}", 'limits/gpus/0: should be the number of a GPU, from 0, not "cuda"'),
        ("network: off", "policy.yaml:1: `off` is not the same to all readers"),
        ("files: none", 'files: should be any or own, not "none"'),
        ("network: closed", "network: should be any or none"),
        ("environments: none", "environments: none leaves no Python to train with: name one in `pythons`"),
        ("code: any\ncode: any", "policy.yaml:2: `code` is given twice, first on line 1"),
        ("code: any\n\tdata: x", "policy.yaml:2: has a tab: indent with spaces"),
    ],
)
def test_a_mistake_is_named_by_file_line_and_key(tmp_path, text, said):
    with pytest.raises(PolicyError) as wrong:
        read(tmp_path, text)
    assert said in str(wrong.value)
    assert wrong.value.code == 3


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(PolicyError) as wrong:
        read(tmp_path, "code: maybe\nlimits:\n  memory: lots\n  gpu: none\nrounds: -1\n")
    assert [mistake.split(": ")[0] for mistake in wrong.value.mistakes] == [f"policy.yaml:{n}" for n in (1, 3, 4, 5)]


def test_a_policy_that_cannot_be_read_is_no_policy(tmp_path):
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        policy.load(tmp_path / "policy.yaml")
    (tmp_path / "policy.yaml").write_bytes(b"code: \xff")
    with pytest.raises(PolicyError, match="not UTF-8"):
        policy.load(tmp_path / "policy.yaml")


def test_the_policy_in_plain_words():
    assert summary(policy.load(EXAMPLE)) == [
        "Code runs after you approved it, byte for byte: `fedctl node approve`.",
        "Python packages are installed after you approved their list.",
        "As a Python, /opt/ml/bin/python may be used as it is.",
        "Tasks may name /srv/xrays, and what is below.",
        "To ask whether the machine is free, /usr/local/bin/may-train may be run.",
        (
            "Of what a training makes, the tensors encoder.* and head.* may leave, but not *.running_mean; "
            "and the metrics val_loss and val_acc."
        ),
        "No log leaves this machine, and of an error its kind and its line in the code.",
        "Updates leave masked: what the coordinator can read is the sum of 5 nodes or more.",
        (
            "Noise is added by every node to its own masked update or by this node, to each of its steps; "
            "all trainings together spend at most ε = 8 (δ = 1e-05)."
        ),
        "In all, trainings are done 200 times at most.",
        "Tasks begin within 20:00-06:00 on mon, tue, wed, thu, fri, by this machine's clock.",
        "Training uses at most 4 processors.",
        "A training process has at most 16G of memory.",
        "Of GPUs training sees 0.",
        "What this key keeps here is at most 50G.",
        "Training code has no network.",
        (
            "Training code may open its own files, /srv/xrays and the system's programs, "
            "and no other file of this account."
        ),
    ]
    assert summary(Policy()) == [
        "Code runs after you approved it, byte for byte: `fedctl node approve`.",
        "Python packages are installed after you approved their list.",
        "Tasks may name no path of this machine.",
        "Tasks may run no program.",
        "Of what a training makes, the tensors of a model may leave; and all metrics.",
        "No log leaves this machine, and of an error its kind and its line in the code.",
        "Updates may leave unmasked; a sum of masked ones is of 3 nodes or more.",
        "Updates may leave without noise.",
        "Tasks begin at any time.",
        "Training code may use the network.",
        "Training code may open every file that this account may.",
    ]
