"""Whether tables compile."""

import shutil
import subprocess
from pathlib import Path

import pytest
from slime_ray.analysis.printing import Table


def assert_compiles(folder: Path, *tables: Table) -> None:
    """Compile the tables in a plain document of the packages that they ask for; skips where there is no pdflatex."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here")
    lines = [
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}",
        *(table.latex() for table in tables),
    ]
    (folder / "all.tex").write_text("\n".join([*lines, r"\end{document}"]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
