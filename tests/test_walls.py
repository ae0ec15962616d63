"""Who may import whom."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.imports import cycles, imports_of, part_of, sources

ROOT = Path(__file__).resolve().parents[1]

ORDER = "errors < world < objectives < config < cluster < runs < data < model < evaluation < training < planning < bench < on_ray < api < live < cli"
"""A part imports those before it alone."""
BESIDE = {"search_spaces": "errors config", "analysis": "errors config runs", "presets": "", "__main__": "runs cli"}
"""Parts next to the order, and what they import. `api`, `live` and `cli` alone import the first two."""
PARTS = ORDER.split(" < ")
MAY_IMPORT = {part: set(PARTS[:place]) for place, part in enumerate(PARTS)} | {
    part: set(names.split()) for part, names in BESIDE.items()
}
for part in ("api", "live", "cli"):
    MAY_IMPORT[part] |= {"analysis", "search_spaces"}
MAY_IMPORT[""] = {"api"}

# Third-party package -> the parts that may import it, be it inside a function.
ONLY_IN: dict[str, set[str]] = {
    "ray": {"on_ray"},
    "aiohttp": {"live", "on_ray"},
    "optuna": {"on_ray"},
    "sqlalchemy": {"on_ray"},
    "torch": {"objectives", "world", "data", "model", "evaluation", "training", "planning", "on_ray", "bench"},
    "transformers": {"data", "model", "evaluation", "training", "planning", "bench"},
    "datasets": {"data", "model", "evaluation", "training"},
    "openai": {"evaluation"},
    "peft": {"model", "training", "evaluation", "bench"},
    "pandas": {"analysis", "runs", "api"},
    "matplotlib": {"analysis", "api"},
    "scipy": {"analysis", "on_ray"},
    "tensorboardX": {"training"},
    "wandb": {"training"},
    "mlflow": {"training"},
}

# What these parts may import beyond slime_ray and the standard library.
NOTHING_BUT: dict[str, set[str]] = {"objectives": {"torch"}, "errors": set(), "search_spaces": set()}

# Parts that a command needs only when it runs.
LAZY_IN_CLI = {"on_ray", "planning", "analysis", "api", "live"}

# Names that exist only in a checkout, or mean another project.
FOREIGN = {"slime", "analysis", "search_spaces"}


def breaches(root: Path) -> list[str]:
    """A sentence for each import that crosses a wall."""
    modules = sources(root)
    known = set(modules)
    parts = {part_of(name) for name in modules}
    found = [item for name, path in modules.items() for item in imports_of(name, path, known)]
    said = [f"{part}: not in ORDER: give it a place" for part in sorted(parts - {""} - set(MAY_IMPORT))]
    for item in found:
        importer, top = part_of(item.importer), item.target.split(".")[0]
        where = f"{item.importer} ({item.place}) imports {item.target}"
        if top == "slime_ray":
            target = part_of(item.target)
            if target not in parts | set(MAY_IMPORT):
                continue
            if target and target != importer and target not in MAY_IMPORT.get(importer, set()):
                said.append(f"{where}: {importer or 'slime_ray'} may not import {target}")
            if importer == "cli" and target in LAZY_IN_CLI and item.at_import_time:
                said.append(f"{where}: only inside the function that needs it")
        elif top in FOREIGN:
            said.append(f"{where}: the name exists only in a checkout, or is another project")
        elif importer not in ONLY_IN.get(top, {importer}):
            said.append(f"{where}: only {', '.join(sorted(ONLY_IN[top]))} may")
        elif importer in NOTHING_BUT and top not in NOTHING_BUT[importer] | sys.stdlib_module_names:
            said.append(f"{where}: {importer} has no such dependency")
    return said + [f"import cycle: {' -> '.join(cycle)}" for cycle in cycles(found)]


def test_no_import_crosses_a_wall() -> None:
    assert breaches(ROOT) == []


def test_no_attribute_of_a_finding_hides_a_module() -> None:
    from slime_ray.analysis import ablation, report

    for file, kind in ((report, "Findings"), (ablation, "Cells"), (report, "ReportFiles")):
        attributes = {*dir(getattr(file, kind)), *getattr(file, kind).__dataclass_fields__}
        assert [name for name in attributes if isinstance(getattr(file, name, None), ModuleType)] in ([], ["json"])


def test_every_part_of_the_package_is_checked() -> None:
    folders = {path.name for path in (ROOT / "slime_ray").iterdir() if (path / "__init__.py").is_file()}
    files = {path.stem for path in (ROOT / "slime_ray").glob("[!_]*.py")}
    assert folders | files | {"analysis", "search_spaces"} <= set(MAY_IMPORT)
    assert {part_of(name) for name in sources(ROOT)} >= folders | {"analysis", "search_spaces"}


def test_nothing_in_the_repository_is_imported_by_a_name_that_only_a_checkout_has() -> None:
    folders = ("slime_ray", "analysis", "search_spaces", "tests", "benchmarks", "docs")
    wrong = [
        f"{path.relative_to(ROOT)}:{item.place}: {item.target}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for item in imports_of("module", path, set())
        if item.target.split(".")[0] in FOREIGN
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("slime_ray/objectives/slime.py", "import numpy", "objectives has no such dependency"),
        ("slime_ray/objectives/slime.py", "from slime_ray.data import forms", "may not import data"),
        ("slime_ray/training/worker.py", "def f():\n    import ray", "only on_ray may"),
        ("slime_ray/training/worker.py", "from optuna.trial import Trial", "only on_ray may"),
        (
            "slime_ray/training/worker.py",
            "import importlib\nimportlib.import_module('ray.tune')",
            "only on_ray may",
        ),
        ("slime_ray/training/worker.py", "from slime_ray import on_ray", "may not import on_ray"),
        ("slime_ray/runs/results.py", "import torch", "imports torch: only"),
        ("analysis/tables.py", "def f():\n    from datasets import Dataset", "imports datasets: only"),
        ("analysis/tables.py", "from ..training import worker", "analysis may not import training"),
        ("analysis/tables.py", "import analysis.figures", "exists only in a checkout"),
        ("slime_ray/model/lora.py", "import slime", "exists only in a checkout"),
        ("slime_ray/model/lora.py", "from slime_ray.cli import main", "model may not import cli"),
        ("slime_ray/__init__.py", "from slime_ray import cli", "slime_ray may not import cli"),
        ("slime_ray/cli/__init__.py", "from slime_ray.on_ray import sweep", "only inside the function"),
        ("slime_ray/cli/__init__.py", "import slime_ray.analysis", "only inside the function"),
        (
            "slime_ray/data/forms.py",
            "from slime_ray.data import splits",
            "slime_ray.data.splits -> slime_ray.data.forms",
        ),
        ("slime_ray/novelty/__init__.py", "", "novelty: not in ORDER"),
    ],
)
def test_a_breach_is_noticed(tmp_path: Path, file: str, code: str, complaint: str) -> None:
    clean = {
        "slime_ray/__init__.py": "",
        "slime_ray/cli/__init__.py": "def f():\n    from slime_ray.on_ray import sweep\n    import slime_ray.analysis",
        "slime_ray/on_ray/__init__.py": "",
        "slime_ray/on_ray/sweep.py": "import ray",
        "slime_ray/data/__init__.py": "",
        "slime_ray/data/forms.py": "",
        "slime_ray/data/splits.py": "from .forms import x",
        "analysis/__init__.py": "",
    }
    for name, text in clean.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert breaches(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code)
    said = breaches(tmp_path)
    assert [sentence for sentence in said if complaint in sentence], said


LOADED = """
import importlib, pkgutil, sys
for name in {names!r}:
    module = importlib.import_module(name)
    for inner in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(inner.name)
print(sorted(set({heavy!r}) & set(sys.modules)))
"""
COUNTER = "torch.utils.flop_counter"
"""A module that imports Triton, where that is installed."""
HEAVY = ["torch", "ray", "optuna", "transformers", "datasets", "peft", COUNTER]


def loaded(names: list[str]) -> str:
    """Which heavy packages a fresh interpreter holds after importing all of `names`."""
    script = LOADED.format(names=names, heavy=HEAVY)
    # From the root, so that it is this checkout's code.
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_analysis_and_results_load_neither_torch_nor_ray() -> None:
    assert loaded(["slime_ray.analysis", "slime_ray.runs.results"]) == "[]"


def test_files_of_the_field_are_read_and_written_without_torch_and_ray() -> None:
    assert loaded(["slime_ray.evaluation.field_files", "slime_ray.evaluation.field_files.exporting"]) == "[]"


def test_the_modules_of_a_plan_load_neither_ray_nor_transformers() -> None:
    # Making one does load transformers: the model's own code says what it takes. The objectives, whose knobs are part of
    # the settings, are torch's.
    modules = {"planning": "estimate material plan prices rates trials work", "model": "flops footprint meter"}
    names = [f"slime_ray.{room}.{name}" for room, some in modules.items() for name in some.split()]
    assert loaded(names) == "['torch']"


def test_the_command_starts_without_loading_torch_or_ray() -> None:
    assert loaded(["slime_ray.cli"]) == "[]"


def test_planning_loads_triton_only_to_count() -> None:
    assert COUNTER not in loaded(["slime_ray.planning.plan"])
