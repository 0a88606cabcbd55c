"""An owner's demands are known by the greeting, before an update leaves without what they ask for."""

import pytest

from fedctl.demands import unmet
from fedctl.privacy import OPEN, DifferentialPrivacy, Privacy, SecureAggregation

MASKED = Privacy(secure_aggregation=SecureAggregation())
NOISY = Privacy(differential_privacy=DifferentialPrivacy(mode="local", noise=1.0, clip=1.0))


@pytest.mark.parametrize(
    ("required", "privacy", "said"),
    [
        ([], OPEN, None),
        (["secure_aggregation"], OPEN, "secure aggregation"),
        (["secure_aggregation"], NOISY, "secure aggregation"),
        (["secure_aggregation"], MASKED, None),
        (["differential_privacy"], MASKED, "differential privacy"),
        (["differential_privacy"], NOISY, None),
    ],
)
def test_what_is_asked_for_and_not_promised_is_said_with_the_line_to_add(required, privacy, said):
    error = unmet({"enrolled": True, "required": required}, privacy)
    assert (error is None) == (said is None)
    if error and said:
        assert said in error.message
        assert "`privacy: {" in (error.hint or "")


def test_a_node_that_is_not_enrolled_asks_for_nothing():
    assert unmet({"python": "3.11.7"}, OPEN) is None
