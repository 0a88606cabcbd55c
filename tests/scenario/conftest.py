from pathlib import Path

import pytest

from fedctl import coordinator

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """A run that does not come to its end shows itself soon."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(60))


@pytest.fixture(autouse=True)
def swift(monkeypatch):
    """No test waits on a disk or on real time: syncing is the kernel's part, and ticks are short."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(coordinator, "TICK_S", 0.02)
