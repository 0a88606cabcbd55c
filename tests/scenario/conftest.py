import pytest

from fedctl import coordinator


@pytest.fixture(autouse=True)
def swift(monkeypatch):
    """No test waits on a disk or on real time: syncing is the kernel's part, and ticks are short."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(coordinator, "TICK_S", 0.02)
