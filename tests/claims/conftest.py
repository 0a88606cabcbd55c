"""The images that the claims share, and the table at the end."""

import pytest

from tests.claims.figures import ROWS, table
from tests.claims.mnist import Mnist


@pytest.fixture(scope="session")
def mnist(tmp_path_factory) -> Mnist:
    return Mnist.make(tmp_path_factory.mktemp("mnist"))


def pytest_terminal_summary(terminalreporter):
    if ROWS:
        terminalreporter.section("claims")
        terminalreporter.write_line(table())
