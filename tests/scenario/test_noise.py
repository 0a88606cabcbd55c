"""Rounds with a coordinator's noise, which dies and closes them again: of the same the noise is the same, else not."""

from dataclasses import replace

import pytest
import torch

from fedctl.events import RoundAggregated
from fedctl.federation import Federation
from fedctl.privacy import DifferentialPrivacy, Privacy
from fedctl.weights import Weights
from tests.scenario.world import Killed, Scene, Watch, dying_before, federation

NAMES = ("alice", "bob", "carol")


def noisy() -> Federation:
    """So much noise that hardly anything else is in a model: updates are cut to a length of 1."""
    dp = DifferentialPrivacy(mode="central", noise=1000.0, clip=1.0)
    return replace(federation(*NAMES, rounds=1, quorum=2), privacy=Privacy(differential_privacy=dp))


def moved(made: Scene) -> torch.Tensor:
    first, model = (Weights.open(made.run.round_model(number))["w"] for number in (0, 1))
    return (model - first).clone()


@pytest.fixture
def died(tmp_path) -> tuple[Scene, torch.Tensor]:
    """A run whose coordinator died with a model made and not journalled, and how far that one had moved."""
    made = Scene(tmp_path / "died", noisy())
    assert made.dies(writer=dying_before(RoundAggregated))
    return made, moved(made)


def test_a_round_that_is_closed_again_has_the_noise_that_it_had(died):
    """Else the mean of the two models would have less than was counted."""
    made, before = died
    assert made.run.noise(1).stat().st_mode & 0o777 == 0o600
    assert made.go().status == "finished"
    assert torch.equal(moved(made), before)


def test_of_other_updates_the_noise_is_another(died):
    """The same would be gone from the difference of the two models."""
    made, before = died
    made.run.update(1, "carol").unlink()
    made.world.works = {key: work for key, work in made.world.works.items() if key.node != "carol"}
    made.world.always_failing.add("carol")
    state = made.go()
    assert state.history[0].contributors == ("alice", "bob")
    assert ((moved(made) - before).abs() > 2).float().mean() > 0.9


def test_two_runs_have_noise_of_their_own(died, tmp_path):
    _, before = died
    other = Scene(tmp_path / "other", noisy())
    assert other.go().status == "finished"
    assert ((moved(other) - before).abs() > 2).float().mean() > 0.9


@pytest.mark.parametrize("dies", [False, True])
def test_the_key_is_gone_once_the_round_is_in_the_journal(tmp_path, dies):
    """Also where the coordinator died before it had removed it."""
    made = Scene(tmp_path, noisy())

    def at(event) -> None:
        if dies and isinstance(event, RoundAggregated):
            assert made.run.noise(1).exists()
            raise Killed

    assert made.dies(Watch(at)) == dies
    assert made.run.noise(1).exists() == dies
    if dies:
        made.go()
    assert not made.run.noise(1).exists()
