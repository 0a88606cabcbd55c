"""What all tests share: their order, and where packages are that only one template needs."""

import sys
import sysconfig
from pathlib import Path

import pytest

SLOW = ("tests/chaos/", "tests/ssh/", "tests/e2e/", "tests/test_docs.py", "tests/parity/", "tests/scenario/")


def pytest_collection_modifyitems(items):
    """Those that start servers and workers come first, so that no long one is left for the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW))


@pytest.fixture(scope="session")
def lora_packages() -> Path:
    """A folder for the path of imports, which is not on it: every worker would import what is there."""
    base = Path(sys.prefix) / "lora"
    return Path(sysconfig.get_path("purelib", vars={"base": str(base), "platbase": str(base)}))
