"""The notebook that runs a sweep, from its first cell to its last."""

import pytest
from matplotlib.figure import Figure
from slime_ray.analysis.printing import Table

from tests.api.notebooks import cell_values

# README's commands run the same sweep in `make test`.
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_sweep_from_a_notebook_ends_in_tables_a_report_and_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "scratch"))
    run, frame, figure, search, plan, report, model = cell_values("sweep.ipynb")
    assert repr(run) == f"Run('{tmp_path}/runs/first': 8 completed)"
    assert len(frame) == 3
    assert set(frame["label"]) > {"slime", "dpo"}
    assert isinstance(figure, Figure)
    assert isinstance(search, Table)
    assert len(search.frame) == 2
    assert plan is None
    assert "arm" in capsys.readouterr().out.rpartition("Ended by")[2]
    assert report.is_file()
    assert (model / "config.json").is_file()
