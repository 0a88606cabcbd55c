"""fed.yaml: what it means, and the sentence for everything that can be wrong with it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedctl.errors import ConfigError, FedctlError, UsageError
from fedctl.federation import Callback, Federation, Limits, Monitor, Named, Node, Schedule, When
from fedctl.topology import load, parse
from fedctl.topology.schema import Section

ROOT = Path(__file__).parents[2]
SMALLEST = """\
name: digits
task:
  model: model.py:DigitsNet
  data: data.py:DigitsData
nodes:
  - name: alice
"""
MODEL = """\
import torch
import torch.nn as nn
from elsewhere import Imported, Other as Renamed

try:
    from lightning.pytorch import LightningModule
except ImportError:
    class LightningModule: ...

class DigitsNet(LightningModule):
    class Inner: ...

Assigned = Typed = DigitsNet
Annotated: type = DigitsNet
PATTERN = "\\d"
def function(): ...
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("federation")
    (root / "model.py").write_text(MODEL)
    (root / "data.py").write_text("class DigitsData: ...\n")
    (root / "averaging.py").write_text("from elsewhere import Late\nclass EMA: ...\n")
    (root / "star.py").write_text("from elsewhere import *\n")
    (root / "plain.py").write_text("")
    (root / "broken.py").write_text("x = 1\nclass :\n")
    (root / "nul.py").write_bytes(b"x = '\0'\n")
    (root / "deep.py").write_text("-" * 100_000 + "1")
    (root / "sub").mkdir()
    (root / "sub" / "net.py").write_text("class Net: ...\n")
    (root / "odd.py").mkdir()
    return root


@pytest.fixture
def read(folder):
    def read(text: str, *overrides: str) -> Federation:
        return parse(text, name="fed.yaml", folder=folder, overrides=overrides)

    return read


@pytest.fixture
def assert_error(read):
    def assert_error(text, message, *overrides, hint=..., kind=ConfigError):
        with pytest.raises(kind) as caught:
            read(text, *overrides)
        assert str(caught.value) == message
        if hint is not ...:
            assert caught.value.hint == hint

    return assert_error


def with_nodes(*lines: str) -> str:
    """The smallest file with these node entries, the first one being on line 6."""
    return "\n".join([*SMALLEST.splitlines()[:5], *(f"  - {line}" for line in lines)])


SPEEDS = "write it as `500kbit`, `2mbit`, `1.5mbit` or `1gbit`; a megabyte a second is 8mbit"


def with_top(*lines: str) -> str:
    """The smallest file with these lines at its end, the first one being line 7."""
    return SMALLEST + "\n".join(lines)


def with_task(line: str) -> str:
    """The smallest file with one more line in its task, line 5."""
    return SMALLEST.replace("nodes:", f"  {line}\nnodes:")


# --- what a file means ---------------------------------------------------------------------------------------------


def test_the_smallest_file_has_the_defaults_of_the_domain(read, folder):
    federation = read(SMALLEST)
    task = federation.task
    assert federation == Federation(name="digits", folder=folder, task=task, nodes=(Node(name="alice"),))
    assert (task.model, task.data) == ("model.py:DigitsNet", "data.py:DigitsData")
    assert (task.model_args, task.data_args, task.monitor) == ({}, {}, Monitor())


@pytest.mark.parametrize(
    ("line", "trainer"),
    [
        ("trainer: {}", {"max_epochs": 1}),
        ("trainer: {precision: 16-mixed}", {"precision": "16-mixed", "max_epochs": 1}),
        ("trainer: {max_epochs: 3}", {"max_epochs": 3}),
        ("trainer: {max_steps: 100}", {"max_steps": 100}),
        ("trainer: {gradient_clip_val: 1e-3, max_steps: 1}", {"gradient_clip_val": 0.001, "max_steps": 1}),
    ],
)
def test_trainer_arguments_pass_and_one_epoch_is_the_default(read, line, trainer):
    assert read(with_task(line)).task.trainer == trainer


@pytest.mark.parametrize(
    ("line", "schedule"),
    [
        ("schedule: {}", Schedule()),
        ("schedule: {cohort: 0.5, quorum: 1}", Schedule(cohort=0.5, quorum=1)),
        ("schedule: {cohort: 1, quorum: 1.0, attempts: 1}", Schedule(cohort=1, quorum=1.0, attempts=1)),
        ("schedule: {deadline: 30m}", Schedule(deadline_s=1800)),
        ("schedule: {deadline: 90s}", Schedule(deadline_s=90)),
        ("schedule: {deadline: 1h30m}", Schedule(deadline_s=5400)),
        ("schedule: {deadline: 2d}", Schedule(deadline_s=172_800)),
        ("schedule: {deadline: 1.5h}", Schedule(deadline_s=5400)),
        ("schedule: {deadline: 45}", Schedule(deadline_s=45)),
        ("schedule: {deadline: 0.5}", Schedule(deadline_s=0.5)),
        ("schedule: {deadline: null}", Schedule(deadline_s=None)),
        ("schedule: {deadline: 30m, partial: true}", Schedule(deadline_s=1800, partial=True)),
        ("schedule: {patience: 1h}", Schedule(patience_s=3600)),
        ("schedule: {patience: null}", Schedule(patience_s=None)),
        ("schedule: {overprovision: 1}", Schedule(overprovision=1.0)),
        ("schedule: {mode: synchronous, cohort: 1}", Schedule(cohort=1)),
        ("schedule: {mode: buffered, buffer: 1}", Schedule(mode="buffered", buffer=1)),
        (
            "schedule: {mode: buffered, buffer: 1, concurrency: 9, staleness: constant, max_staleness: 3}",
            Schedule(mode="buffered", buffer=1, concurrency=9, staleness=Named(name="constant"), max_staleness=3),
        ),
        (
            "schedule: {mode: buffered, buffer: 1, staleness: {name: hinge, b: 2}}",
            Schedule(mode="buffered", buffer=1, staleness=Named(name="hinge", options={"b": 2})),
        ),
    ],
)
def test_schedules(read, line, schedule):
    assert read(with_top(line)).schedule == schedule


@pytest.mark.parametrize(("written", "factor"), [("1.3", 1.3), ("2", 2.0), ("10", 10.0)])
def test_more_nodes_than_the_cohort_may_be_asked(read, written, factor):
    text = with_nodes("{name: a}", "{name: b}", f"{{name: c}}\nschedule: {{cohort: 2, overprovision: {written}}}")
    assert read(text).schedule == Schedule(cohort=2, overprovision=factor)


@pytest.mark.parametrize(
    ("written", "when"),
    [
        ('{hours: "20:00-06:00"}', When(hours=((1200, 360),))),
        ('{hours: ["0:00-6:30", "22:15-24:00"]}', When(hours=((0, 390), (1335, 1440)))),
        ("{days: sat}", When(days=(5,))),
        ("{days: mon-fri}", When(days=(0, 1, 2, 3, 4))),
        ("{days: fri-mon}", When(days=(0, 4, 5, 6))),
        ("{days: [sun, wed, tue-thu]}", When(days=(1, 2, 3, 6))),
        ("{command: /opt/idle}", When(command=("/opt/idle",))),
        ("{command: [~/bin/idle, --load, '2']}", When(command=("~/bin/idle", "--load", "2"))),
        ('{days: sun, hours: "1:00-2:00", command: /x}', When(days=(6,), hours=((60, 120),), command=("/x",))),
        ("null", None),
    ],
)
def test_when_a_node_may_be_used(read, written, when):
    assert read(with_nodes(f"{{name: a, when: {written}}}")).nodes[0].when == when


def test_a_node_may_always_be_used_though_the_others_have_hours(read):
    text = with_nodes("{name: a}", '{name: b, when: null}\ndefaults: {when: {hours: "20:00-06:00"}}')
    assert [node.when for node in read(text).nodes] == [When(hours=((1200, 360),)), None]


def test_windows_are_a_reason_for_partial_work_too(read):
    text = with_nodes("{name: a, when: {days: sun}}\nschedule: {partial: true}")
    assert read(text).schedule.partial


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        ("limits: {}", Limits()),
        ("limits: {norm: 5}", Limits(norm=5)),
        ("limits: {norm: null, examples: 2000}", Limits(norm=None, examples=2000)),
        ("limits: {examples: null}", Limits(examples=None)),
    ],
)
def test_limits_of_an_update(read, line, limits):
    assert read(with_top(line)).limits == limits


@pytest.mark.parametrize("value", ["0", "-1", ".inf", ".nan", "true", "big"])
def test_a_norm_is_a_number_above_0(read, value):
    with pytest.raises(ConfigError, match="limits/norm: should be a number above 0") as caught:
        read(with_top(f"limits: {{norm: {value}}}"))
    assert caught.value.hint == "null is without a limit"


def test_a_share_stays_a_share_and_a_number_a_number(read):
    schedule = read(with_top("schedule: {cohort: 1, quorum: 1.0}")).schedule
    assert (type(schedule.cohort), type(schedule.quorum)) == (int, float)


@pytest.mark.parametrize(
    ("line", "strategy"),
    [
        ("strategy: median", Named(name="median")),
        ("strategy: {name: fedadam, lr: 0.01}", Named(name="fedadam", options={"lr": 0.01})),
        ("strategy: my.module:Class", Named(name="my.module:Class")),
    ],
)
def test_strategies(read, line, strategy):
    assert read(with_top(line)).strategy == strategy


@pytest.mark.parametrize(
    ("line", "local"),
    [
        ("", None),
        ("local: null", None),
        ("local: fedprox", Named(name="fedprox")),
        ("local: {name: fedprox, mu: 0.1}", Named(name="fedprox", options={"mu": 0.1})),
    ],
)
def test_local_rules(read, line, local):
    assert read(with_top(line)).local == local


@pytest.mark.parametrize(
    ("entry", "callback"),
    [
        ("averaging.py:EMA", Callback(target="averaging.py:EMA")),
        ("{class: averaging.py:EMA}", Callback(target="averaging.py:EMA")),
        ("{class: averaging.py:Late, args: {lr: 1}}", Callback(target="averaging.py:Late", args={"lr": 1})),
    ],
)
def test_callbacks(read, entry, callback):
    task = read(with_task(f"callbacks: [{entry}]")).task
    assert task.callbacks == (callback,)
    assert task.targets == ("model.py:DigitsNet", "data.py:DigitsData", callback.target)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[averaging.py:EMAA]", "task/callbacks/0/class: no class EMAA in averaging.py"),
        ("[averaging.py:EMA, {class: gone.py:X}]", 'task/callbacks/1/class: there is no file "gone.py"'),
        ("[EMA]", 'task/callbacks/0/class: should be a file and a class in it, not "EMA"'),
        ("[{args: {}}]", "task/callbacks/0/class: missing"),
        ("[{class: averaging.py:EMA, decay: 1}]", "task/callbacks/0/decay: unknown key"),
        ("[3]", "task/callbacks/0: should be a mapping, not 3"),
        ("averaging.py:EMA", 'task/callbacks: should be a list, not "averaging.py:EMA"'),
    ],
)
def test_callbacks_that_are_wrong(assert_error, value, message):
    assert_error(with_task(f"callbacks: {value}"), f"fed.yaml:5: {message}")


def test_nodes_take_defaults_and_data_is_merged(read):
    text = with_nodes("{name: alice, user: a, port: null, data: {site: 0}}", "{name: bob, threads: 0}")
    nodes = read(text + "\ndefaults: {user: d, port: 22, threads: 4, data: {site: 9, root: /srv}}").nodes
    assert nodes == (
        Node(name="alice", user="a", threads=4, data={"site": 0, "root": "/srv"}),
        Node(name="bob", user="d", port=22, data={"site": 9, "root": "/srv"}),
    )


def test_every_field_of_a_node(read):
    entry = (
        "{name: a, host: h, user: u, port: 1, key: /my key, jump: j, python: p, accelerator: gpu, "
        "devices: 2, slots: 3, threads: 4, bandwidth: 2mbit, uplink: 1.5 mbit, downlink: 1gbit, "
        "data: {x: [1, {y: null}]}}"
    )
    assert read(with_nodes(entry)).nodes == (
        Node(
            name="a",
            host="h",
            user="u",
            port=1,
            key="/my key",
            jump="j",
            python="p",
            accelerator="gpu",
            devices=2,
            slots=3,
            threads=4,
            bandwidth_bps=2e6,
            uplink_bps=1.5e6,
            downlink_bps=1e9,
            data={"x": [1, {"y": None}]},
        ),
    )


def test_count_makes_nodes(read):
    data = '{site: "{i}", path: "/x/{i:03d}/{i}", other: "{j} {i.real} {}", list: ["{i}", {k: "{i}"}], n: 5}'
    nodes = read(with_nodes('{name: "sim-{i:04d}", count: 1000, data: ' + data + "}")).nodes
    assert [nodes[0].name, nodes[999].name, len(nodes)] == ["sim-0000", "sim-0999", 1000]
    assert nodes[7].data == {
        "site": 7,
        "path": "/x/007/7",
        "other": "{j} {i.real} {}",
        "list": [7, {"k": 7}],
        "n": 5,
    }


def test_the_index_says_where_a_node_is(read):
    entry = (
        '{name: "lab-{i}", count: 300, host: "node{i+1:03d}.example.org", user: "fed{i}", key: "~/.ssh/id-{i}",'
        ' jump: "b{i}", home: "/scratch/{i:02d}", wheelhouse: "./wheels/{i}", data: {rack: "{i+5}", n: "{i+1}/{j+1}"}}'
    )
    plain = '{name: one, host: "node{i}"}'
    nodes = read(with_nodes(entry, plain) + '\ndefaults: {python: "/opt/py{i}/bin/python"}').nodes
    assert len(nodes) == 301
    seventh = nodes[7]
    assert (seventh.name, seventh.host, seventh.user) == ("lab-7", "node008.example.org", "fed7")
    assert (seventh.key, seventh.jump, seventh.home) == ("~/.ssh/id-7", "b7", "/scratch/07")
    assert (seventh.wheelhouse, seventh.python) == ("./wheels/7", "/opt/py7/bin/python")
    assert seventh.data == {"rack": 12, "n": "8/{j+1}"}
    assert nodes[299].host == "node300.example.org"
    assert (nodes[300].host, nodes[300].python) == ("node{i}", "/opt/py{i}/bin/python")


def test_the_index_works_in_the_data_of_defaults_and_only_under_a_count(read):
    nodes = read(
        with_nodes("{name: a}", '{name: "b{i}", count: 2}', "{name: c, count: null}")
        + '\ndefaults: {data: {site: "{i}"}}'
    ).nodes
    assert [(node.name, node.data["site"]) for node in nodes] == [("a", "{i}"), ("b0", 0), ("b1", 1), ("c", "{i}")]


def test_yaml_is_read_as_people_mean_it(read):
    args = read(
        with_task("model_args: {lr: 1e-3, big: 2E6, half: .5, when: 2026-11-21, eq: =, flag: yes, none: ~}")
    ).task.model_args
    assert args == {"lr": 0.001, "big": 2e6, "half": 0.5, "when": "2026-11-21", "eq": "=", "flag": True, "none": None}


def test_anchors_aliases_and_merges(read):
    text = with_nodes(
        "&a {name: alice, slots: 1, data: &d {site: 0}}",
        "{<<: *a, name: bob}",
        "{<<: [{slots: 2}, *a], name: carol, data: *d}",
    )
    assert [(node.name, node.slots, node.data) for node in read(text).nodes] == [
        ("alice", 1, {"site": 0}),
        ("bob", 1, {"site": 0}),
        ("carol", 2, {"site": 0}),
    ]


@pytest.mark.parametrize(
    "reference",
    [
        *("model.py:" + name for name in ("DigitsNet", "Imported", "Renamed", "Assigned", "Typed", "Annotated")),
        "model.py:LightningModule",
        "star.py:Anything",
        "sub/net.py:Net",
        "./sub/net.py:Net",
    ],
)
def test_references_that_are_there(read, reference):
    assert read(SMALLEST.replace("model.py:DigitsNet", reference)).task.model == reference


# --- one-line refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("on", "should be a whole number, not true", "YAML reads `on` as true"),
        ("true", "should be a whole number, not true", None),
        ("-1", "should be at least 1, not -1", None),
        ("0", "should be at least 1, not 0", None),
        ("1.5", "should be a whole number, not 1.5", None),
        ("1.0", "should be a whole number, not 1.0", None),
        ('"3"', 'should be a whole number, not "3"', "take the quotes away"),
        ("three", 'should be a whole number, not "three"', None),
        ("[3]", "should be a whole number, not a list", None),
        ("{a: 3}", "should be a whole number, not a mapping", None),
        ("", "should be a whole number, not empty", "give it a value, or remove the key"),
    ],
)
def test_rounds(assert_error, value, message, hint):
    assert_error(with_top(f"rounds: {value}"), f"fed.yaml:7: rounds: {message}", hint=hint)


HOURS = "should be a span of hours or a list of them"
HOURS_HINT = 'such as "20:00-06:00", in quotes, by the node\'s own clock'
DAYS_HINT = "such as mon-fri, or [sat, sun]"
SHARE = "should be a share above 0 and up to 1.0, or a number of nodes from 1, not"
NAME = "should be at most 64 letters, digits, dots, `_` or `-`, beginning with a letter or a digit, without `..`"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: -1", "seed: should be at least 0, not -1"),
        ("seed: 4294967296", "seed: should be at most 4294967295, not 4294967296"),
        ("compare: 1", "compare: should be true or false, not 1"),
        ("compare: maybe", 'compare: should be true or false, not "maybe"'),
        ("codec: 8", "codec: should be a codec or a list of them, not 8"),
        ("privacy: {noise: 1}", "privacy/noise: unknown key"),
        ("share: {except: 3}", "share/except: should be a pattern of names of tensors, or a list of them, not 3"),
        ("share: {only: [a, 3]}", "share/only: should be a pattern of names of tensors, or a list of them, not a list"),
        ("share: {only: [a], except: [b]}", "share: should have `only` or `except`, not both"),
        ("finetune: {epochs: 0}", "finetune/epochs: should be at least 1, not 0"),
        ("finetune: 3", "finetune: should be a mapping, not 3"),
        ("share: []", "share: should be a mapping, not a list"),
        ("schedule:", "schedule: should be a mapping, not empty"),
        ("schedule: {cohort: 0}", f"schedule/cohort: {SHARE} 0"),
        ("schedule: {cohort: 0.0}", f"schedule/cohort: {SHARE} 0.0"),
        ("schedule: {cohort: 1.5}", f"schedule/cohort: {SHARE} 1.5"),
        ("schedule: {cohort: .nan}", f"schedule/cohort: {SHARE} nan"),
        ("schedule: {cohort: on}", f"schedule/cohort: {SHARE} true"),
        ("schedule: {quorum: 80%}", f'schedule/quorum: {SHARE} "80%"'),
        ("schedule: {cohort: 2}", "schedule/cohort: asks for 2 nodes of 1"),
        ("schedule: {quorum: 2}", "schedule/quorum: asks for 2 updates of a cohort of 1"),
        ("schedule: {mode: async}", 'schedule/mode: should be synchronous or buffered, not "async"'),
        ("schedule: {mode: buffered}", "schedule/buffer: missing for `mode: buffered`"),
        ("schedule: {mode: buffered, buffer: 0}", "schedule/buffer: should be at least 1, not 0"),
        (
            "schedule: {mode: buffered, buffer: 2}",
            "schedule/buffer: asks for updates of 2 nodes of 1, and each gives a model one",
        ),
        (
            "schedule: {mode: buffered, buffer: 1, quorum: 2}",
            "schedule/quorum: asks for 2 updates of a buffer of 1",
        ),
        (
            "schedule: {mode: buffered, buffer: 1, cohort: 1}",
            "schedule/cohort: does not go with `mode: buffered`, where nodes train on from model to model",
        ),
        (
            "schedule: {mode: buffered, buffer: 1, overprovision: 2}",
            "schedule/overprovision: does not go with `mode: buffered`, where nodes train on from model to model",
        ),
        ("schedule: {buffer: 1}", "schedule/buffer: belongs to `mode: buffered`"),
        ("schedule: {concurrency: 1}", "schedule/concurrency: belongs to `mode: buffered`"),
        ("schedule: {staleness: hinge}", "schedule/staleness: belongs to `mode: buffered`"),
        ("schedule: {max_staleness: 1}", "schedule/max_staleness: belongs to `mode: buffered`"),
        (
            "schedule: {mode: buffered, buffer: 1, concurrency: 0}",
            "schedule/concurrency: should be at least 1, not 0",
        ),
        (
            "schedule: {mode: buffered, buffer: 1, max_staleness: 0}",
            "schedule/max_staleness: should be at least 1, not 0",
        ),
        (
            "schedule: {mode: buffered, buffer: 1, staleness: 3}",
            "schedule/staleness: should be a name, or a mapping with a name and options, not 3",
        ),
        (
            "schedule: {mode: buffered, buffer: 1, staleness: {exponent: 1}}",
            "schedule/staleness: should have the name of a function of staleness, not empty",
        ),
        ("schedule: {deadline: 0}", "schedule/deadline: should be a duration above 0, not 0"),
        ("schedule: {deadline: 0m}", 'schedule/deadline: should be a duration above 0, not "0m"'),
        ("schedule: {deadline: -5}", "schedule/deadline: should be a duration above 0, not -5"),
        ("schedule: {deadline: .inf}", "schedule/deadline: should be a duration above 0, not inf"),
        ("schedule: {deadline: soon}", 'schedule/deadline: should be a duration above 0, not "soon"'),
        ("schedule: {deadline: 30m1h}", 'schedule/deadline: should be a duration above 0, not "30m1h"'),
        ('schedule: {deadline: ""}', 'schedule/deadline: should be a duration above 0, not ""'),
        ("schedule: {deadline: yes}", "schedule/deadline: should be a duration above 0, not true"),
        (
            "schedule: {partial: true}",
            "schedule/partial: has no deadline by which a node could hand in what it has done",
        ),
        ("schedule: {partial: 1}", "schedule/partial: should be true or false, not 1"),
        ("schedule: {patience: 0}", "schedule/patience: should be a duration above 0, not 0"),
        ("schedule: {overprovision: 0.9}", "schedule/overprovision: should be a number from 1 to 10, not 0.9"),
        ("schedule: {overprovision: 11}", "schedule/overprovision: should be a number from 1 to 10, not 11"),
        ("schedule: {overprovision: on}", "schedule/overprovision: should be a number from 1 to 10, not true"),
        ("schedule: {overprovision: 2}", "schedule/overprovision: asks more nodes than a cohort of all 1"),
        ("defaults: {when: {}}", "defaults/when: should have hours, days or a command"),
        ("schedule: {attempts: 0}", "schedule/attempts: should be at least 1, not 0"),
        ("strategy: 3", "strategy: should be a name, or a mapping with a name and options, not 3"),
        ("strategy: {lr: 1}", "strategy: should have the name of a strategy, not empty"),
        ("strategy: ' '", 'strategy: should have the name of a strategy, not " "'),
        ("local: 3", "local: should be a name, or a mapping with a name and options, not 3"),
        ("local: {mu: 1}", "local: should have the name of a local rule, not empty"),
        ("defaults: {name: x}", "defaults/name: unknown key"),
        ("defaults: {accelerator: tpu}", 'defaults/accelerator: should be auto, cpu, gpu or mps, not "tpu"'),
    ],
)
def test_fields_of_the_top_level(assert_error, line, message):
    assert_error(with_top(line), f"fed.yaml:7: {message}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a/b", f'{NAME}, not "a/b"'),
        ("..", f'{NAME}, not ".."'),
        ("a..b", f'{NAME}, not "a..b"'),
        (".hidden", f'{NAME}, not ".hidden"'),
        ('""', f'{NAME}, not ""'),
        ('"a\\n"', f'{NAME}, not "a\\n"'),
        ("ünder", f'{NAME}, not "ünder"'),
        ("x" * 300, f'{NAME}, not "{"x" * 37}..."'),
    ],
)
def test_names(assert_error, value, message):
    assert_error(SMALLEST.replace("digits", value, 1), f"fed.yaml:1: name: {message}")
    assert_error(with_nodes(f"name: {value}"), f"fed.yaml:6: nodes/0/name: {message}")


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("no", "should be text, not false", 'YAML reads `no` as false: write "no" in quotes'),
        ("007", "should be text, not 7", 'YAML reads `007` as 7: write "007" in quotes'),
        ("1e3", "should be text, not 1000.0", 'YAML reads `1e3` as 1000.0: write "1e3" in quotes'),
        ("[a]", "should be text, not a list", None),
    ],
)
def test_names_that_yaml_does_not_read_as_text(assert_error, value, message, hint):
    assert_error(with_nodes(f"name: {value}"), f"fed.yaml:6: nodes/0/name: {message}", hint=hint)


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ("{name: a, prt: 1}", "prt: unknown key", "did you mean `port`?"),
        ("{name: a, 'x\x7f': 1}", None, ...),
        ("{name: a, port: 0}", "port: should be at least 1, not 0", None),
        ("{name: a, port: 65536}", "port: should be at most 65535, not 65536", None),
        ('{name: a, port: "22"}', 'port: should be a whole number, not "22"', "take the quotes away"),
        ("{name: a, host: -oProxy}", 'host: should be one word that does not begin with `-`, not "-oProxy"', None),
        ("{name: a, user: a b}", 'user: should be one word that does not begin with `-`, not "a b"', None),
        ("{name: a, key: ''}", 'key: should be printable text, not ""', None),
        ('{name: a, python: "\\e[31m"}', 'python: should be printable text, not "\\u001b[31m"', None),
        (
            "{name: a, accelerator: cup}",
            'accelerator: should be auto, cpu, gpu or mps, not "cup"',
            "did you mean `cpu`?",
        ),
        ("{name: a, devices: 0}", "devices: should be auto or a whole number from 1, not 0", None),
        ("{name: a, devices: on}", "devices: should be auto or a whole number from 1, not true", None),
        ("{name: a, slots: 0}", "slots: should be at least 1, not 0", None),
        ("{name: a, bandwidth: 2000000}", "bandwidth: should be bits a second with their unit, not 2000000", SPEEDS),
        ("{name: a, bandwidth: 2Mbit/s}", 'bandwidth: should be bits a second with their unit, not "2Mbit/s"', SPEEDS),
        ("{name: a, uplink: 2MB}", 'uplink: should be bits a second with their unit, not "2MB"', SPEEDS),
        ("{name: a, downlink: 0mbit}", 'downlink: should be at least 16kbit, not "0mbit"', ...),
        ("{name: a, threads: -1}", "threads: should be at least 0, not -1", None),
        (
            "{name: a, when: {}}",
            "when: should have hours, days or a command",
            "leave `when` out for a node that may always be used",
        ),
        ('{name: a, when: "20:00-06:00"}', 'when: should be a mapping, not "20:00-06:00"', None),
        ("{name: a, when: {hour: 1}}", "when/hour: unknown key", "did you mean `hours`?"),
        ("{name: a, when: {hours: 20:00}}", f"when/hours: {HOURS}, not 1200", HOURS_HINT),
        ("{name: a, when: {hours: []}}", f"when/hours: {HOURS}, not a list", HOURS_HINT),
        ("{name: a, when: {hours: evening}}", 'when/hours: should be a span of hours, not "evening"', HOURS_HINT),
        ('{name: a, when: {hours: "6:00-6:00"}}', 'when/hours: should be a span of hours, not "6:00-6:00"', HOURS_HINT),
        ('{name: a, when: {hours: "6:00-24:01"}}', None, HOURS_HINT),
        ('{name: a, when: {hours: "24:00-6:00"}}', None, HOURS_HINT),
        ('{name: a, when: {hours: ["1:00-2:00", "2:60-3:00"]}}', None, HOURS_HINT),
        ("{name: a, when: {days: monday}}", 'when/days: should be days of the week, not "monday"', DAYS_HINT),
        ("{name: a, when: {days: [mon, sat-]}}", 'when/days: should be days of the week, not "sat-"', DAYS_HINT),
        ("{name: a, when: {days: 1}}", "when/days: should be a day, a span or a list of them, not 1", DAYS_HINT),
        (
            "{name: a, when: {command: []}}",
            "when/command: should be a program on the node, or a list of it and its arguments, not a list",
            "such as [/usr/local/bin/on-mains, --quiet]; no shell reads it",
        ),
        (
            '{name: a, when: {command: "/bin/test -d /"}}',
            'when/command: should be a program, or a list of it and its arguments, not "/bin/test -d /"',
            "[/bin/test, -d, /]",
        ),
        ("{name: a, when: {command: [/x, 2]}}", None, "such as [/usr/local/bin/on-mains, --quiet]; no shell reads it"),
        (
            "{name: a, when: {command: on-mains}}",
            'when/command: should name the program by its path, not "on-mains"',
            "such as /usr/local/bin/on-mains",
        ),
        ("{name: a, data: [1]}", "data: should be a mapping, not a list", None),
        ("{name: a, count: 0}", "count: should be at least 1, not 0", None),
        (
            "{name: a, count: 3}",
            'name: should have {i} in it, because `count` makes 3 nodes of it, not "a"',
            'such as "sim-{i}" or "sim-{i:04d}"',
        ),
        ('{name: "a{i:x}", count: 3}', None, 'such as "sim-{i}" or "sim-{i:04d}"'),
        ('{name: "a{i:999999999d}", count: 3}', None, 'such as "sim-{i}" or "sim-{i:04d}"'),
        ('{name: "a{i}"}', "name: has {i} but no `count`", "add `count:` beside it"),
        ('{name: "a/{i}", count: 11}', f'name: {NAME}, not "a/10"', None),
        ('{name: "a{i}", count: 2, data: {site: {i}}}', "data/site: {i} without quotes is a mapping", 'write "{i}"'),
        ('{name: "a{i}", count: 2, data: {s: [{i}]}}', "data/s/0: {i} without quotes is a mapping", 'write "{i}"'),
        ("{name: coordinator}", "name: coordinator is a reserved name", "give it another name"),
        ("{name: Coordinator}", "name: Coordinator is a reserved name", "give it another name"),
        ("{port: 22}", "name: missing", "add `name:` to nodes/0"),
    ],
)
def test_fields_of_a_node(read, entry, message, hint):
    with pytest.raises(ConfigError) as caught:
        read(with_nodes(entry))
    assert str(caught.value).startswith("fed.yaml:6: ")
    assert message is None or str(caught.value) in {
        f"fed.yaml:6: nodes/0/{message}",
        f"fed.yaml:6: nodes/0: {message}",
    }
    assert hint is ... or caught.value.hint == hint


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["name: a", "name: b", "name: a"], "fed.yaml:8: nodes/2/name: a is already the name of nodes/0 (fed.yaml:6)"),
        (
            ["name: a", "name: A"],
            "fed.yaml:7: nodes/1/name: A differs only in case from a, the name of nodes/0 (fed.yaml:6)",
        ),
        (
            ["{name: 's{i}', count: 9}", "name: s4"],
            "fed.yaml:7: nodes/1/name: s4 is already the name of nodes/0 (fed.yaml:6)",
        ),
        (
            ["name: s4", "{name: 's{i}', count: 9}"],
            "fed.yaml:7: nodes/1/name: s4 is already the name of nodes/0 (fed.yaml:6)",
        ),
        (["{name: 's{i}', count: 100001}"], "fed.yaml:5: nodes: these are more than 100000 nodes"),
        (["just text"], 'fed.yaml:6: nodes/0: should be a mapping, not "just text"'),
    ],
)
def test_nodes_taken_together(assert_error, entries, message):
    assert_error(with_nodes(*entries), message)


@pytest.mark.parametrize(
    ("replaced", "by", "message", "hint"),
    [
        ("nodes:\n  - name: alice", "nodes: []", "fed.yaml:5: nodes: there are no nodes", ...),
        ("nodes:\n  - name: alice", "nodes:", "fed.yaml:5: nodes: should be a list, not empty", ...),
        ("nodes:\n  - name: alice", "nodes: {a: {}}", "fed.yaml:5: nodes: should be a list, not a mapping", ...),
        ("nodes:\n  - name: alice", "", "fed.yaml: nodes: missing", "add `nodes:` to the top level"),
        ("name: digits", "", "fed.yaml: name: missing", "add `name:` to the top level"),
        ("  model: model.py:DigitsNet\n", "", "fed.yaml:2: task/model: missing", "add `model:` to task"),
        ("  model:", "  modl:", None, "did you mean `model`?"),
    ],
)
def test_what_is_missing(read, replaced, by, message, hint):
    with pytest.raises(ConfigError) as caught:
        read(SMALLEST.replace(replaced, by))
    assert message is None or str(caught.value) == message
    assert hint is ... or caught.value.hint == hint


@pytest.mark.parametrize(
    "key",
    [
        "accelerator",
        "devices",
        "num_nodes",
        "logger",
        "enable_checkpointing",
        "enable_progress_bar",
        "enable_model_summary",
        "default_root_dir",
    ],
)
def test_trainer_arguments_that_fedctl_sets(assert_error, key):
    assert_error(with_task(f"trainer: {{{key}: 1}}"), f"fed.yaml:5: task/trainer/{key}: fedctl sets this itself")


def test_the_devices_of_a_trainer_belong_to_the_nodes(assert_error):
    hint = "give `devices` to the nodes, or to `defaults`"
    assert_error(
        with_task("trainer: {devices: 2}"), "fed.yaml:5: task/trainer/devices: fedctl sets this itself", hint=hint
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("monitor: {metric: val_acc}", "monitor: task/monitor/mode: missing for val_acc"),
        ("monitor: {mode: up}", 'monitor/mode: should be min or max, not "up"'),
        ("monitor: {metric: 3}", "monitor/metric: should be text, not 3"),
        ("monitor: val_acc", 'monitor: should be a mapping, not "val_acc"'),
        ("model_args: [1]", "model_args: should be a mapping, not a list"),
        ("monitr: {}", "monitr: unknown key"),
    ],
)
def test_fields_of_the_task(assert_error, line, message):
    message = message.removeprefix("monitor: ") if "missing" in message else f"task/{message}"
    assert_error(with_task(line), f"fed.yaml:5: {message}")


def test_a_monitor_may_leave_the_mode_of_the_loss_out(read):
    assert read(with_task("monitor: {metric: val_loss}")).task.monitor == Monitor()
    assert read(with_task("monitor: {metric: acc, mode: max}")).task.monitor == Monitor(metric="acc", mode="max")


@pytest.mark.parametrize(
    ("reference", "message", "hint"),
    [
        ("modle.py:DigitsNet", 'there is no file "modle.py"', "did you mean `model.py`?"),
        ("zzzzzzzzz.py:Net", 'there is no file "zzzzzzzzz.py"', ...),
        ("odd.py:Net", 'there is no file "odd.py"', ...),
        ('"x\\0.py:Net"', 'there is no file "x\\u0000.py"', ...),
        ("model.py:digitsnet", "no class digitsnet in model.py", "did you mean `DigitsNet`?"),
        ("model.py:Inner", "no class Inner in model.py", ...),
        ("model.py:function", "no class function in model.py", "the classes there are DigitsNet and LightningModule"),
        ("model.py:Asigned", "no class Asigned in model.py", "did you mean `Assigned`?"),
        ("plain.py:Net", "no class Net in plain.py", "it has no class at its top level"),
        ("broken.py:Net", "broken.py:2: not valid Python: invalid syntax", "try `python broken.py`"),
        ("nul.py:Net", ..., "try `python nul.py`"),
        ("deep.py:Net", ..., "try `python deep.py`"),
        ("model.py", 'should be a file and a class in it, not "model.py"', "such as `model.py:DigitsNet`"),
        ("model:Net", 'should be a file and a class in it, not "model:Net"', ...),
        ("model.py:Digits-Net", 'should be a file and a class in it, not "model.py:Digits-Net"', ...),
        ("../model.py:Net", 'should name a file in the folder of fed.yaml, not "../model.py"', ...),
        ("/etc/model.py:Net", 'should name a file in the folder of fed.yaml, not "/etc/model.py"', ...),
        ("sub/../../model.py:Net", 'should name a file in the folder of fed.yaml, not "sub/../../model.py"', ...),
        ("3", "should be text, not 3", ...),
    ],
)
def test_references_that_are_not_there(read, reference, message, hint):
    with pytest.raises(ConfigError) as caught:
        read(SMALLEST.replace("model.py:DigitsNet", reference))
    assert message is ... or str(caught.value) == f"fed.yaml:3: task/model: {message}"
    assert hint is ... or caught.value.hint == hint


def test_a_file_name_too_long_for_the_disk(assert_error):
    message = f'fed.yaml:3: task/model: cannot read "{"x" * 37}...": File name too long'
    assert_error(SMALLEST.replace("model.py", "x" * 300 + ".py"), message)


def test_a_folder_without_python(tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse(SMALLEST, name="fed.yaml", folder=tmp_path)
    assert caught.value.hint == "there is no Python file there"


# --- many at once --------------------------------------------------------------------------------------------------


def test_all_problems_are_told_in_the_order_of_the_file(assert_error):
    text = "rouns: 3\n" + with_nodes("{name: a, prt: 1}", "{name: b, slots: no}")
    assert_error(
        text + "\nseed: x",
        "fed.yaml:1: rouns: unknown key\n"
        "fed.yaml:7: nodes/0/prt: unknown key (did you mean `port`?)\n"
        "fed.yaml:8: nodes/1/slots: should be a whole number, not false (YAML reads `no` as false)\n"
        'fed.yaml:9: seed: should be a whole number, not "x"',
        hint="did you mean `rounds`?",
    )


def test_at_most_ten_problems_are_told(read):
    with pytest.raises(ConfigError) as caught:
        read(with_nodes(*(f"{{name: n{i}, slots: 0}}" for i in range(14))))
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (11, "and 4 more")


def test_an_unknown_key_near_none_lists_the_keys(assert_error):
    known = "mode, cohort, overprovision, quorum, deadline, partial, attempts, patience, buffer, concurrency"
    hint = f"the keys there are {known}, staleness and max_staleness"
    assert_error(with_top("schedule: {zzz: 1}"), "fed.yaml:7: schedule/zzz: unknown key", hint=hint)


# --- text that is not a federation at all ---------------------------------------------------------------------------

TABS = "indent with spaces: YAML allows no tabs there"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "fed.yaml: the file is empty", "`fedctl init` makes one, or name another with -f"),
        ("# nothing\n", "fed.yaml: the file is empty", ...),
        ("---\n", "fed.yaml: the file is empty", ...),
        ("- a\n", "fed.yaml: should be a mapping at the top level, not a list", ...),
        ("words", 'fed.yaml: should be a mapping at the top level, not "words"', ...),
        ("a: 1\nb: 2\na: 3\n", "fed.yaml:3: a: the key is given twice, first in line 1", "keep one of the two"),
        ("a:\n  - {b: 1, b: 2}\n", "fed.yaml:2: a/0/b: the key is given twice, first in line 2", ...),
        ("a:\n\tb: 1\n", None, TABS),
        ("a: b: c\n", "fed.yaml:1: column 5: not valid YAML: mapping values are not allowed here", ...),
        ("a: [1\n", None, ...),
        ("a: *b\n", "fed.yaml:1: column 4: not valid YAML: found undefined alias 'b'", ...),
        ("a: 1\n---\nb: 2\n", "fed.yaml:2: column 1: not valid YAML: but found another document", ...),
        ("a: 1\nb: \x01\n", "fed.yaml:2: not a text file: it has the character 0x1", ...),
        ('a: "\\UFFFFFFFF"\n', "fed.yaml:1: not valid YAML: a text has an escape that is no character", ...),
        ('a: "\\ud800"\n', None, "put it in quotes"),
        ("a: 0x_\n", 'fed.yaml:1: a: "0x_" cannot be read', "put it in quotes"),
        ("a: !!int x\n", 'fed.yaml:1: a: "x" cannot be read', ...),
        ("a: !!bool x\n", 'fed.yaml:1: a: "x" cannot be read', ...),
        ("a: 99999999999999999999\n", "fed.yaml:1: a: the number is too large", ...),
        (f"a: {'9' * 5000}\n", None, "put it in quotes"),
        (f"a: 0x{'f' * 5000}\n", None, "put it in quotes"),
        ("a: !x 1\n", 'fed.yaml:1: a: the tag "!x" is not supported', "leave the tag out"),
        ("a: !!python/name:os.system x\n", None, "leave the tag out"),
        ("a: !!set {b, c}\n", 'fed.yaml:1: a: the tag "tag:yaml.org,2002:set" is not supported', ...),
        ("a: {0: b}\n", "fed.yaml:1: a: a key should be text, not 0", "put the key in quotes"),
        ("on: b\n", "fed.yaml:1: a key should be text, not true", "put the key in quotes"),
        ("? [a]\n: b\n", "fed.yaml:1: a key should be text, not a list", ...),
        ("? {a: b}\n: b\n", "fed.yaml:1: a key should be text, not a mapping", "put the key in quotes"),
        ("!x a: 1\n", 'fed.yaml:1: the tag "!x" is not supported', "leave the tag out"),
        ("a: {<<: 3}\n", "fed.yaml:1: a: `<<` merges mappings only", ...),
        ("a: &a [*a]\n", "fed.yaml:1: nested deeper than 50 levels", "see what its aliases expand to"),
        ("a: &a {<<: *a}\n", "fed.yaml: nested too deep", ...),
        ("[" * 5000, "fed.yaml: nested too deep", ...),
    ],
)
def test_text_that_cannot_be_read(read, text, message, hint):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith("fed.yaml:")
    assert message is None or str(caught.value) == message
    assert hint is ... or caught.value.hint == hint


@pytest.mark.parametrize("form", ["[{0}, {0}]", "{{x: {0}, y: {0}}}", "{{<<: [{0}, {0}]}}"])
def test_aliases_cannot_blow_up(read, form):
    leaf = "{k: v}" if "<<" in form else "lol"
    lines = [f"a0: &a0 {leaf}", *(f"a{i}: &a{i} {form.format(f'*a{i - 1}')}" for i in range(1, 45))]
    with pytest.raises(ConfigError, match="more than 100000 values"):
        read("\n".join(lines))


# --- files ---------------------------------------------------------------------------------------------------------


def test_load_reads_a_file_beside_its_code(folder):
    (folder / "fed.yaml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    federation = load(folder / "fed.yaml", ["rounds=3"])
    assert (federation.folder, federation.rounds) == (folder, 3)


def test_load_makes_the_folder_absolute(folder, monkeypatch):
    (folder / "fed.yaml").write_text(SMALLEST)
    monkeypatch.chdir(folder)
    assert load(Path("fed.yaml")).folder == folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: \xff\n", "fed.yaml:2: not UTF-8 text"),
        (SMALLEST.encode("utf-16"), "fed.yaml:1: not UTF-8 text"),
        (b"\x7fELF\x02\x01\x00", "fed.yaml:1: not a text file: it has the character 0x7f"),
        (b"#" * 1_000_001, "fed.yaml: larger than 1000000 bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    (tmp_path / "fed.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "fed.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fed.yaml", "fed.yaml: no such file"),
        ("sub", "sub: is a folder"),
        ("file/fed.yaml", "fed.yaml: cannot be read: Not a directory"),
        ("a\0b", "a\0b: cannot be read: not a path"),
    ],
)
def test_files_that_are_not_there(tmp_path, name, message):
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / name)
    assert str(caught.value) == message


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "fed.yaml")
    assert caught.value.hint == "`fedctl init` makes one, or name another with -f"


def test_the_current_folder_is_no_file():
    with pytest.raises(ConfigError, match=r"^\.: is a folder$"):
        load(Path())


# --- overrides -----------------------------------------------------------------------------------------------------

TWO = with_nodes("{name: alice, data: {site: 0}}", "{name: bob.example, slots: 1}") + "\nstrategy: fedavg\nseed: 7\n"


@pytest.mark.parametrize(
    ("overrides", "look", "value"),
    [
        (["rounds=3"], lambda f: f.rounds, 3),
        (["rounds = 3"], lambda f: f.rounds, 3),
        (["rounds=3", "rounds=4"], lambda f: f.rounds, 4),
        (["compare=yes"], lambda f: f.compare, True),
        (["schedule.deadline=5m"], lambda f: f.schedule.deadline_s, 300),
        (["schedule=", "schedule.deadline=5m"], lambda f: f.schedule.deadline_s, 300),
        (["schedule={attempts: 5}"], lambda f: f.schedule.attempts, 5),
        (["nodes.0.data.site=3"], lambda f: f.nodes[0].data, {"site": 3}),
        (["nodes.0.data.extra=a=b"], lambda f: f.nodes[0].data, {"site": 0, "extra": "a=b"}),
        (["nodes.alice.slots=2"], lambda f: f.nodes[0].slots, 2),
        (["nodes.bob.example.slots=2"], lambda f: f.nodes[1].slots, 2),
        (["nodes.0.name=carol", "nodes.carol.slots=2"], lambda f: f.nodes[0].slots, 2),
        (["nodes.alice={name: dora}"], lambda f: f.nodes[0], Node(name="dora")),
        (["nodes=[{name: zoe}]"], lambda f: f.nodes, (Node(name="zoe"),)),
        (["strategy.lr=0.1"], lambda f: f.strategy, Named(name="fedavg", options={"lr": 0.1})),
        (["strategy.name=x", "strategy.lr=1e-3"], lambda f: f.strategy, Named(name="x", options={"lr": 0.001})),
        (["local=fedprox", "local.mu=0.1"], lambda f: f.local, Named(name="fedprox", options={"mu": 0.1})),
        (["task.trainer.x=[a, b]", "task.trainer.x.1=c"], lambda f: f.task.trainer["x"], ["a", "c"]),
    ],
)  # fmt: skip
def test_overrides(read, overrides, look, value):
    assert look(read(TWO, *overrides)) == value


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("rouns=3", "--set rouns: unknown key", "did you mean `rounds`?"),
        ("rounds=on", "--set rounds: should be a whole number, not true", "YAML reads `on` as true"),
        ("rounds=", "--set rounds: should be a whole number, not empty", ...),
        ("schedule={quorm: 1}", "--set schedule: quorm: unknown key", "did you mean `quorum`?"),
        ("schedule={quorum: 1, quorum: 2}", "--set schedule: quorum: the key is given twice, first in line 1", ...),
        ("schedule.quorm=1", "--set schedule.quorm: unknown key", "did you mean `quorum`?"),
        ("schedule.cohort=3", "--set schedule.cohort: asks for 3 nodes of 2", ...),
        ("nodes.alice.prt=1", "--set nodes.alice.prt: unknown key", "did you mean `port`?"),
        ("nodes.alic.slots=1", "--set nodes.alic.slots: nothing in nodes is named alic", "did you mean `alice`?"),
        ("nodes.zzz.slots=1", "--set nodes.zzz.slots: nothing in nodes is named zzz", ...),
        ("nodes.2.slots=1", "--set nodes.2.slots: nodes has only 2 items", "the first one is 0"),
        ("nodes.-1.slots=1", "--set nodes.-1.slots: nothing in nodes is named -1", ...),
        ("nodes.1.name=alice", "--set nodes.1.name: alice is already the name of nodes/0 (fed.yaml:6)", ...),
        ("seed.x=3", "--set seed.x: seed is 7 and has no keys", ...),
        ("task.model=nope.py:X", '--set task.model: there is no file "nope.py"', ...),
        ("task={}", "--set task: model: missing\n--set task: data: missing (add `data:` to task)", ...),
        ("monitor.metric=a", "--set monitor.metric: monitor: unknown key", ...),
        (
            "rounds=[",
            "--set rounds: column 2: not valid YAML: expected the node content, but found '<stream end>'",
            ...,
        ),
        ("rounds=!x 3", '--set rounds: the tag "!x" is not supported', ...),
    ],
)
def test_overrides_that_are_wrong(assert_error, override, message, hint):
    assert_error(TWO, message, override, hint=hint)


def test_an_index_into_a_list_without_names(assert_error):
    message = "--set task.trainer.x.y: nothing in task/trainer/x is named y"
    assert_error(with_task("trainer: {x: [1]}"), message, "task.trainer.x.y=1", hint="the first item is 0")


@pytest.mark.parametrize("override", ["foo", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_overrides_that_are_malformed(assert_error, override):
    assert_error(TWO, f"--set {override}: should be a path, `=` and a value", override, kind=UsageError)


def test_models_trained_alone_are_not_sent_about_where_parts_of_them_stay_at_home(read, assert_error):
    text = "fed.yaml:8: compare: would send what nodes train alone to all others, and `share` keeps parts of it at home"
    assert_error(with_top("share: {except: [a]}\ncompare: true"), text)
    assert read(with_top("share: {except: []}\ncompare: true")).compare


def test_what_is_just_on_can_be_given_options(read):
    secure = read(with_top("privacy: {secure_aggregation: true}"), "privacy.secure_aggregation.range=2.5").privacy
    assert secure.secure_aggregation.range == 2.5


def test_an_override_mends_what_the_file_has_wrong(read):
    assert read(with_top("rounds: on"), "rounds=3").rounds == 3


# --- anything at all -----------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=8
)
KEYS = [
    "name",
    "seed",
    "rounds",
    "task",
    "strategy",
    "schedule",
    "share",
    "finetune",
    "local",
    "codec",
    "compare",
    "nodes",
]


def never_crashes(read, text, *overrides):
    try:
        assert isinstance(read(text, *overrides), Federation)
    except FedctlError as error:
        assert error.message  # noqa: PT017 - either outcome is right, a traceback is not
        error.message.encode()


@FUZZ
@given(st.text(max_size=200) | st.text("{}[]:-&*!|>'\"%@`#,? \n\tab01.~<=", max_size=60))
def test_any_text(read, text):
    never_crashes(read, text)


@FUZZ
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_anywhere(read, key, value):
    document = {**yaml.safe_load(SMALLEST), key: value}
    never_crashes(read, yaml.dump(document, allow_unicode=True))


@FUZZ
@given(value=st.dictionaries(st.sampled_from(["name", "port", "slots", "data", "count", "host"]), VALUES, max_size=4))
def test_any_node(read, value):
    document = {**yaml.safe_load(SMALLEST), "nodes": [{"name": "n{i}", "count": 2, **value}]}
    never_crashes(read, yaml.dump(document))


@FUZZ
@given(path=st.text("abinodes.01=", max_size=12) | st.sampled_from(KEYS), value=st.text(max_size=20))
def test_any_override(read, path, value):
    never_crashes(read, TWO, f"{path}={value}")


@FUZZ
@given(st.binary(max_size=100))
def test_any_bytes(folder, data):
    (folder / "fuzz.yaml").write_bytes(data)
    with pytest.raises(ConfigError):
        load(folder / "fuzz.yaml")


# --- the example, the page, the door -------------------------------------------------------------------------------


def sections(section=Section):
    return [each for child in section.__subclasses__() for each in (child, *sections(child))]


def test_the_example_is_a_federation(read):
    federation = read((ROOT / "fed.yaml.example").read_text())
    assert federation.node("sim-0003").data == {"root": "/tmp/digits/3", "site": 3, "sites": 8}
    assert (federation.schedule.deadline_s, federation.task.monitor.mode) == (1800, "max")


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_the_example_and_the_page_have_every_key(section):
    example, page = (ROOT / "fed.yaml.example").read_text(), (ROOT / "docs" / "fed-yaml.md").read_text()
    for key in section.allowed():
        assert f"{key}:" in example
        assert any(f"| `{prefix}{key}` |" in page for prefix in ("", "callbacks.", "monitor.", "share.", "when.")), key


def test_the_example_has_a_comment_for_every_key():
    silent = {"port", "user", "accelerator", "slots", "data"}  # told in the comment of another line
    for line in (ROOT / "fed.yaml.example").read_text().splitlines():
        key, colon, rest = line.strip().removeprefix("- ").partition(":")
        if colon and key.isidentifier() and rest.strip():
            assert "  # " in line or key in silent or key == "name", line


def test_the_errors_on_the_page_are_real(read):
    page = (ROOT / "docs" / "fed-yaml.md").read_text()
    shown = [block.strip().splitlines() for block in page.split("```")[1::2] if block.startswith("\nerror: ")]
    made = {tuple(line.partition(": ")[2].split(": ")[-1] for line in block) for block in shown}
    texts = [
        (with_nodes("{name: a}", "{name: b, prt: 1}"),),
        (with_top("rounds: on"),),
        (SMALLEST.replace("DigitsNet", "DigitNet"),),
        (with_top("strategy: {lr: 1}"),),
        (with_top("local: {mu: 1}"),),
        (with_nodes(*(f"name: n{i}" for i in range(4))) + "\nschedule: {quorum: 5}",),
        (with_top("share: {only: [a], except: [b]}"),),
        (with_nodes("{name: a, when: {hours: evening}}"),),
        (with_top("limits: {norm: 0}"),),
        (with_nodes("name: alice", "name: bob", "name: alice"),),
        (SMALLEST, "rouns=3"),
    ]
    real = set()
    for text, *overrides in texts:
        with pytest.raises(ConfigError) as caught:
            read(text, *overrides)
        real.add((caught.value.message.split(": ")[-1], caught.value.hint.split(": ")[-1]))
    lineless = {tuple(part.replace("fed.yaml:6", "fed.yaml:10") for part in pair) for pair in real}
    assert made == lineless


def test_the_door_opens_on_pydantic_and_yaml_only():
    code = "import sys, fedctl.topology; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert {"pydantic", "yaml"} <= loaded
    assert not {"torch", "lightning", "pytorch_lightning", "rich", "typer", "paramiko", "numpy"} & loaded


class TestCodec:
    @pytest.mark.parametrize(
        ("written", "up", "down"),
        [
            ("none", [], []),
            ("[none]", [], []),
            ("int8", [("int8", {})], []),
            ("[delta, topk: {keep: 0.1}, zstd]", [("delta", {}), ("topk", {"keep": 0.1}), ("zstd", {})], []),
            ("{name: topk, keep: 0.1}", [("topk", {"keep": 0.1})], []),
            ("{down: [delta, zstd]}", [], [("delta", {}), ("zstd", {})]),
            ("{up: none, down: delta}", [], [("delta", {})]),
        ],
    )
    def test_is_read_in_every_form(self, folder, written, up, down):
        found = parse(f"{SMALLEST}codec: {written}\n", name="fed.yaml", folder=folder).codec
        assert [(each.name, each.options) for each in found.up] == up
        assert [(each.name, each.options) for each in found.down] == down

    @pytest.mark.parametrize(
        ("written", "said", "hint"),
        [
            ("{up: [delta], dwon: [delta]}", "dwon: unknown key", "did you mean `down`?"),
            ("{topk: {keep: 0.1}, int8: {}}", "names several codecs in one mapping", "write a list"),
            ("[delta, {topk: 0.1}]", "should have the options of topk as a mapping, not 0.1", "topk: {keep: 0.01}"),
            ("true", "should be a codec or a list of them", "or none"),
        ],
    )
    def test_what_is_none_is_refused(self, folder, written, said, hint):
        with pytest.raises(ConfigError) as error:
            parse(f"{SMALLEST}codec: {written}\n", name="fed.yaml", folder=folder)
        assert said in error.value.message
        assert hint in error.value.hint
