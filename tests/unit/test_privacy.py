"""What fed.yaml may promise, the sentence for each promise that is none, and how a node is told."""

import json
from pathlib import Path

import pytest

from fedctl.errors import ConfigError
from fedctl.privacy import OPEN, AdaptiveClip, DifferentialPrivacy, Privacy, SecureAggregation
from fedctl.topology import parse

LINES = """\
name: digits
task:
  model: model.py:DigitsNet
  data: data.py:DigitsData
nodes:
  - name: alice
"""
CENTRAL = "mode: central, noise: 1, clip: 1"
PRIVATE = DifferentialPrivacy(mode="central", noise=1.0, clip=1.0)
ABOVE = "should be a number above 0, not"
INNER = "should be a number above 0 and below 1, not"
MAJORITY = "should be a share above 0.5 and up to 1.0, not"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("promises")
    (root / "model.py").write_text("class DigitsNet: ...\n")
    (root / "data.py").write_text("class DigitsData: ...\n")
    return root


def promised(folder: Path, text: str) -> Privacy:
    return parse(f"{LINES}privacy: {text}\n", name="fed.yaml", folder=folder).privacy


def dp(**more) -> Privacy:
    return Privacy(differential_privacy=DifferentialPrivacy(**{"mode": "central", "noise": 1.0, "clip": 1.0, **more}))


def secure(**more) -> Privacy:
    return Privacy(secure_aggregation=SecureAggregation(**more))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("none", OPEN),
        ("{}", OPEN),
        ("{clip: 3}", Privacy(clip=3.0)),
        ("{secure_aggregation: true}", secure()),
        ("{secure_aggregation: {}}", secure()),
        ("{secure_aggregation: false}", OPEN),
        ("{secure_aggregation: {threshold: 1}}", secure(threshold=1.0)),
        ("{secure_aggregation: {neighbours: 40, range: 2}}", secure(neighbours=40, range=2.0)),
        ("{secure_aggregation: {examples: 100, patience: 90s}}", secure(examples=100, patience_s=90.0)),
        (f"{{differential_privacy: {{{CENTRAL}}}}}", dp()),
        (f"{{differential_privacy: {{{CENTRAL}, delta: 1e-7, epsilon: 8}}}}", dp(delta=1e-7, epsilon=8.0)),
        (f"{{differential_privacy: {{{CENTRAL}, adaptive: true}}}}", dp(adaptive=AdaptiveClip())),
        (f"{{differential_privacy: {{{CENTRAL}, adaptive: false}}}}", dp()),
        (
            f"{{differential_privacy: {{{CENTRAL}, adaptive: {{quantile: 0.9, rate: 1, noise: 5}}}}}}",
            dp(adaptive=AdaptiveClip(quantile=0.9, rate=1.0, noise=5.0)),
        ),
    ],
)
def test_what_is_promised(folder, text, means):
    assert promised(folder, text) == means


def test_nothing_is_promised_unless_it_is_said(folder):
    assert parse(LINES, name="fed.yaml", folder=folder).privacy == OPEN == Privacy()
    assert OPEN.to_json() == {}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "privacy: should be none or a mapping, not empty", "remove the key, or give it what it needs"),
        ("true", "privacy: should be a mapping, not true", None),
        ("[1]", "privacy: should be a mapping, not a list", None),
        (
            "secure",
            'privacy: should be none or a mapping, not "secure"',
            "such as `privacy: {secure_aggregation: {}}`",
        ),
        (
            "dp",
            'privacy: should be none or a mapping, not "dp"',
            "such as `privacy: {differential_privacy: {mode: central, noise: 1.0, clip: 0.5}}`",
        ),
        ("{secure: true}", "privacy/secure: unknown key", ...),
        ("{clip: 0}", f"privacy/clip: {ABOVE} 0", None),
        ("{clip: true}", f"privacy/clip: {ABOVE} true", None),
        ("{clip: .inf}", f"privacy/clip: {ABOVE} inf", None),
        ("{clip: null}", f"privacy/clip: {ABOVE} empty", None),
    ],
)
def test_a_promise_that_is_none(folder, text, message, hint):
    refused(folder, text, message, hint)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("null", ": should be true, false or a mapping, not empty", "remove the key, or give it what it needs"),
        ("yes please", ': should be a mapping, not "yes please"', None),
        ("1", ": should be a mapping, not 1", None),
        ("{threshold: 0.5}", f"/threshold: {MAJORITY} 0.5", "with half of the neighbours or fewer"),
        ("{threshold: 1.01}", f"/threshold: {MAJORITY} 1.01", ...),
        ("{threshold: true}", f"/threshold: {MAJORITY} true", ...),
        ("{neighbours: 0}", "/neighbours: should be at least 1, not 0", None),
        ("{neighbours: 2.5}", "/neighbours: should be a whole number, not 2.5", None),
        ("{neighbors: 4}", "/neighbors: unknown key", "did you mean `neighbours`?"),
        ("{range: 0}", f"/range: {ABOVE} 0", None),
        ("{examples: 0}", "/examples: should be at least 1, not 0", None),
        ("{patience: null}", "/patience: should be a duration above 0, not empty", "write it as `90s`"),
        ("{patience: soon}", '/patience: should be a duration above 0, not "soon"', "leave it out for the default"),
        ("{patience_s: 3}", "/patience_s: unknown key", "did you mean `patience`?"),
    ],
)
def test_masks_that_cannot_be(folder, text, message, hint):
    refused(folder, f"{{secure_aggregation: {text}}}", f"privacy/secure_aggregation{message}", hint)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("null", ": should be a mapping, not empty", "remove the key, or give it what it needs"),
        ("true", ": should be a mapping, not true", None),
        ("{mode: central, noise: 1}", "/clip: missing", "add `clip:` to privacy/differential_privacy"),
        ("{noise: 1, clip: 1}", "/mode: missing", ...),
        (
            "{mode: centrl, noise: 1, clip: 1}",
            '/mode: should be central, distributed or local, not "centrl"',
            "did you",
        ),
        ("{mode: central, noise: 0, clip: 1}", f"/noise: {ABOVE} 0", None),
        ("{mode: central, noise: 1, clip: -1}", f"/clip: {ABOVE} -1", None),
        (f"{{{CENTRAL}, delta: 0}}", f"/delta: {INNER} 0", None),
        (f"{{{CENTRAL}, delta: 1}}", f"/delta: {INNER} 1", None),
        (f"{{{CENTRAL}, epsilon: 0}}", f"/epsilon: {ABOVE} 0", None),
        (f"{{{CENTRAL}, adaptive: 3}}", "/adaptive: should be a mapping, not 3", None),
        (f"{{{CENTRAL}, adaptive: null}}", "/adaptive: should be true, false or a mapping, not empty", ...),
        (f"{{{CENTRAL}, adaptive: {{quantile: 1.0}}}}", f"/adaptive/quantile: {INNER} 1.0", None),
        (f"{{{CENTRAL}, adaptive: {{quantil: 0.5}}}}", "/adaptive/quantil: unknown key", "did you mean `quantile`?"),
        (f"{{{CENTRAL}, adaptive: {{rate: 0}}}}", f"/adaptive/rate: {ABOVE} 0", None),
        (f"{{{CENTRAL}, adaptive: {{noise: 0}}}}", f"/adaptive/noise: {ABOVE} 0", None),
    ],
)
def test_noise_that_cannot_be(folder, text, message, hint):
    refused(folder, f"{{differential_privacy: {text}}}", f"privacy/differential_privacy{message}", hint)


def refused(folder: Path, text: str, message: str, hint: object) -> None:
    """It is refused in these words, at its line; `hint` is a part of the hint, None where there is none."""
    with pytest.raises(ConfigError) as error:
        promised(folder, text)
    assert str(error.value) == f"fed.yaml:7: {message}"
    if hint is None:
        assert error.value.hint is None
    elif hint is not ...:
        assert hint in error.value.hint


@pytest.mark.parametrize(
    "privacy",
    [
        OPEN,
        Privacy(clip=2.5),
        secure(),
        secure(threshold=0.9, neighbours=30, range=1.0, examples=7, patience_s=1.0),
        dp(epsilon=3.0),
        dp(adaptive=AdaptiveClip(noise=2.0)),
        Privacy(
            secure_aggregation=SecureAggregation(),
            differential_privacy=DifferentialPrivacy(mode="distributed", noise=0.5, clip=0.1),
        ),
    ],
)
def test_a_node_reads_what_it_is_told(privacy):
    assert Privacy.from_json(json.loads(json.dumps(privacy.to_json()))) == privacy


@pytest.mark.parametrize(
    ("privacy", "norm"),
    [
        (OPEN, None),
        (Privacy(clip=2.0), 2.0),
        (Privacy(clip=2.0, secure_aggregation=SecureAggregation()), 2.0),
        (dp(), None),
        (Privacy(secure_aggregation=SecureAggregation(), differential_privacy=PRIVATE), 1.0),
        (dp(mode="local"), None),
    ],
)
def test_what_a_node_cuts_its_update_down_to(privacy, norm):
    """With central noise it is the coordinator who does, unless it sees no single update."""
    assert privacy.norm == norm


@pytest.mark.parametrize(
    ("privacy", "mode", "is_secure", "by_node", "takes_a_mean", "packages"),
    [
        (OPEN, None, False, False, False, ()),
        (secure(), None, True, False, True, ("cryptography",)),
        (dp(), "central", False, True, True, ()),
        (dp(mode="local"), "local", False, False, False, ("cryptography", "opacus")),
        (
            Privacy(secure_aggregation=SecureAggregation(), differential_privacy=PRIVATE),
            "central",
            True,
            True,
            True,
            ("cryptography",),
        ),
    ],
)
def test_what_follows_from_it(privacy, mode, is_secure, by_node, takes_a_mean, packages):
    found = (privacy.mode, privacy.is_secure, privacy.is_counted_by_node, privacy.takes_a_mean, privacy.packages)
    assert found == (mode, is_secure, by_node, takes_a_mean, packages)
