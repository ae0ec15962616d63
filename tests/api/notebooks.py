"""Notebooks of the docs, run cell by cell in this process."""

import ast
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def cell_values(name: str) -> list[Any]:
    """Run the code cells of a notebook: what each shows, the value of its last line where that is an expression.

    It is kept as it was written, not as somebody's machine filled it in. Magics are the notebook's.
    """
    notebook = json.loads((DOCS / name).read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, object] = {}
    return [_value("".join(cell["source"]), name, names) for cell in cells]


def _value(source: str, name: str, names: dict[str, object]) -> Any:
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    last = tree.body[-1] if isinstance(tree.body[-1], ast.Expr) else None
    tree.body = tree.body[:-1] if last else tree.body
    exec(compile(tree, name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names) if last else None
