"""Whether tables compile."""

import shutil
import subprocess
from pathlib import Path

import pytest
from slime_ray.analysis.printing import Table


def assert_compiles(folder: Path, *tables: Table) -> None:
    """Compile the tables in a plain document of the packages that they ask for; skips where there is no pdflatex."""
    assert_document_compiles(folder, "\n".join(table.latex() for table in tables))


def assert_document_compiles(folder: Path, *parts: str) -> None:
    """Compile each text as a document; skips where there is neither pdflatex nor tectonic."""
    program = next(filter(shutil.which, ("pdflatex", "tectonic")), None)
    if program is None:
        pytest.skip("neither pdflatex nor tectonic here")
    flags = ["-interaction=nonstopmode", "-halt-on-error"] if program == "pdflatex" else []
    for number, part in enumerate(parts):
        head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        name = f"all-{number}.tex"
        (folder / name).write_text("\n".join([head, part, r"\end{document}"]), encoding="utf-8")
        command = [program, *flags, name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
