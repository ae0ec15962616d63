"""Options of this test suite, and what tests of all parts use."""

import gc

import pytest
from hypothesis import settings

# On a machine that does other work, too, one example may take any time.
settings.register_profile("loaded", deadline=None)
settings.load_profile("loaded")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", help="append what each fault cost to this file, one JSON object a line")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray first, README's commands before all: where tests run side by side, the short ones fill the gaps."""
    items.sort(key=lambda item: (item.path.name != "test_readme.py", item.get_closest_marker("ray") is None))


def pytest_collection_finish() -> None:
    """Garbage collection, of which training asks for much, need not look through the libraries and tests again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def sketch() -> dict[str, bytes]:
    """A small drawing in all its forms."""
    from matplotlib.figure import Figure
    from slime_ray.analysis import figures

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return figures.render(figure)


@pytest.fixture
def sketched(sketch: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at no drawing: a report takes most of its time to draw, and here has a sketch instead."""
    monkeypatch.setattr("slime_ray.analysis.report.render", lambda figure, *kinds: sketch)
