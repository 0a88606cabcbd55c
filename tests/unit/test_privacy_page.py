"""docs/privacy.md prints the table that fed.yaml is checked by."""

from pathlib import Path

from fedctl.operations import combinations

PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"


def test_the_page_has_the_table_that_launch_refuses_by():
    assert combinations.table() in PAGE.read_text(), (
        "print it there: python -c 'from fedctl.operations.combinations import table; print(table())'"
    )
