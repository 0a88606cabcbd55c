import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.errors import ConfigError
from fedctl.federation import Federation
from fedctl.topology import load
from tests.fuzz import each_of, mutated

EXAMPLE = (Path(__file__).parents[2] / "fed.yaml.example").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    (folder / "model.py").write_text("class DigitsNet: ...\n")
    (folder / "data.py").write_text("class DigitsData: ...\n")
    (folder / "averaging.py").write_text("class EMA: ...\nclass Late: ...\n")
    return folder


def read(folder, content):
    """A federation, or a ConfigError."""
    (folder / "fed.yaml").write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert isinstance(load(folder / "fed.yaml"), Federation)


@each_of("topology")
def test_the_corpus_is_read_or_refused(folder, content):
    read(folder, content)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_read_or_refused(folder, data):
    read(folder, mutated(data, EXAMPLE))
