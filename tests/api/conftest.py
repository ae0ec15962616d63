"""Runs as the tables' own tests have them."""

from tests.analysis.conftest import judged_run

__all__ = ["judged_run"]
