"""Two hostile nodes of eleven, which add noise as large as a model to theirs: the mean falls, robust rules do not.

The limit on an update's norm lets the noise pass: it is 89 long, and the limit is 1000 times the model's norm plus 1.
"""

import pytest

from tests.claims import figures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROUNDS = 30
HOSTILE = 2
RULES = {
    "median": {},
    "trimmed-mean": {"hostile": HOSTILE},
    "multi-krum": {"hostile": HOSTILE},
    "bulyan": {"hostile": HOSTILE},
    "geometric-median": {"hostile": HOSTILE},
}
SEEN: dict[str, list[float]] = {}


def curve(mnist, strategy) -> list[float]:
    """The accuracy after each round under the attack."""
    run = mnist.launch(
        rounds=ROUNDS,
        lr=0.1,
        nodes=11,
        model="Softmax",
        data_args={"alpha": 100, "hostile": HOSTILE},
        strategy=strategy,
    )
    found = SEEN[strategy["name"]] = mnist.accuracies(run, "Softmax")
    figures.save("hostile", SEEN)
    return found


def test_noise_of_two_nodes_ruins_the_mean(mnist):
    end = curve(mnist, {"name": "fedavg"})[-1]
    figures.record("2 of 11 nodes add N(0, 1): fedavg", bound="< 75 %", seen=f"{100 * end:.1f} %")
    assert end < 0.75


@pytest.mark.parametrize("name", RULES)
def test_a_robust_rule_bears_them(mnist, name):
    end = curve(mnist, {"name": name, **RULES[name]})[-1]
    figures.record(f"2 of 11 nodes add N(0, 1): {name}", bound="> 86 %", seen=f"{100 * end:.1f} %")
    assert end > 0.86
