"""What is found wrong with a fed.yaml once it was read: it is told with the line where it stands."""

import pytest

from fedctl import topology
from fedctl.errors import ConfigError

TEXT = """name: toy
task: {model: model.py:Net, data: data.py:Data}
strategy: fedavg
schedule:
  quorum: 2
nodes:
  - {name: alice}
  - {name: bob}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "fed.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("message", "overrides", "told"),
    [
        ("strategy: too few updates", (), "fed.yaml:3: strategy: too few updates"),
        ("schedule/quorum: too low", (), "fed.yaml:5: schedule/quorum: too low"),
        ("schedule/mode: not that", (), "fed.yaml:4: schedule/mode: not that"),
        ("nodes/1/data: no such path: x", (), "fed.yaml:8: nodes/1/data: no such path: x"),
        ("codec/up: in another order", (), "fed.yaml: codec/up: in another order"),
        ("strategy: too few updates", ("strategy=krum",), "--set strategy: too few updates"),
        ("schedule/quorum: too low", ("schedule.quorum=1",), "--set schedule.quorum: too low"),
        ("model.py:7: not valid Python", (), "model.py:7: not valid Python"),
        ("the model cannot be built: strategy: x", (), "the model cannot be built: strategy: x"),
        ("nothing to tell", (), "nothing to tell"),
    ],
)
def test_a_message_that_begins_with_an_address_is_told_with_its_line(file, message, overrides, told):
    with pytest.raises(ConfigError) as error, topology.placed(file, overrides):
        raise ConfigError(message, hint="do this")
    assert (error.value.message, error.value.hint) == (told, "do this")


def test_other_errors_pass(file):
    with pytest.raises(ValueError, match="strategy: x"), topology.placed(file):
        raise ValueError("strategy: x")
