"""The notebook of the docs runs from its first cell to its last on a run as a sweep writes it."""

import pandas as pd
from matplotlib.figure import Figure
from slime_ray.analysis.printing import Table

from tests.api.notebooks import cell_values


def test_every_cell_of_the_notebook_runs(judged_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(judged_run)
    monkeypatch.chdir(tmp_path)
    values = cell_values("notebook.ipynb")
    kinds = [type(value) for value in values]
    frame = pd.DataFrame
    assert kinds == [frame, Table, frame, Figure, frame, frame, list, Table, type(None)]
    assert len(values[0]) == 24
    assert "<caption>" in values[1]._repr_html_()
    assert "Stability S by" in values[1]._repr_html_()
    assert values[5].loc["nll", "outcome"] == 0.75
    assert ("Win rate and stability", "pareto", "Figure") in values[6]
    assert r"\begin{table}" in capsys.readouterr().out
