"""The notebook of the docs runs from its first cell to its last on a run as a sweep writes it."""

import ast
import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from slime_ray.analysis.printing import Table

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"


def shown(source, names):
    """What a cell shows: the value of its last line, if that is an expression. Magics are the notebook's."""
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def test_every_cell_of_the_notebook_runs(judged_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(judged_run)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # It is kept as it was written, not as somebody's machine filled it in.
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, object] = {}
    values = [shown("".join(cell["source"]), names) for cell in cells]
    kinds = [type(value) for value in values]
    frame = pd.DataFrame
    assert kinds == [frame, Table, frame, Figure, frame, frame, list, Table, type(None)]
    assert len(values[0]) == 24
    assert "<caption>" in values[1]._repr_html_()
    assert "Stability S by" in values[1]._repr_html_()
    assert values[5].loc["nll", "outcome"] == 0.75
    assert ("Win rate and stability", "pareto", "Figure") in values[6]
    assert r"\begin{table}" in capsys.readouterr().out
