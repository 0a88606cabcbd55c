"""The order of tests: those that start servers and workers come first, so that no long one is left for the end."""

SLOW = ("tests/chaos/", "tests/ssh/", "tests/e2e/", "tests/test_docs.py", "tests/parity/", "tests/scenario/")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW))
