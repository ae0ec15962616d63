"""Options of this test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", help="append what each fault cost to this file, one JSON object a line")
