"""slime_ray: hyperparameter search and ablations for SLIME preference fine-tuning (arXiv 2602.02383).

SLIME is here Stabilized Likelihood Implicit Margin Enforcement, an objective; it is not THUDM/slime.
"""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slime_ray.api import Run, ablate, evaluate, league, load, plan, report, sweep, train

__version__ = "0.2.0.dev0"
__all__ = ["Run", "ablate", "evaluate", "league", "load", "plan", "report", "sweep", "train"]


def __getattr__(name: str) -> object:
    """Give a function of `slime_ray.api`, which is imported when one is asked for."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# A wheel has `analysis` and `search_spaces` inside this package. A checkout has them at its top level, so its root
# joins the places where subpackages are looked up.
_package = Path(__file__).resolve().parent
if not (_package / "analysis").is_dir() and (_package.parent / "analysis" / "__init__.py").is_file():
    __path__.append(str(_package.parent))

_CONFIG = (
    "ablation", "design", "expansion", "experiment", "experiment_file", "points", "reference", "reproduction",
    "search_file", "settings", "space", "strict", "yaml_source",
)  # fmt: skip
_RUNS = ("instructions", "pareto", "redaction", "results", "stability_v1")
_MOVED = {
    **{name: f"config.{name}" for name in _CONFIG},
    **{name: f"runs.{name}" for name in _RUNS},
    "judge_settings": "config.judge",
    "mirror": "runs.store",
    "run_folder": "runs.folder",
    "run_status": "runs.status",
    "tracker_settings": "config.trackers",
    **{f"on_ray.{name}": "cluster" for name in ("cluster_checks", "cluster_file", "rayjob_file")},
    **{f"on_ray.{name}": "on_ray.resources" for name in ("plan_cluster", "spending")},
    **{f"on_ray.{name}": "on_ray.workers" for name in ("group", "trial")},
    "on_ray.janitor": "on_ray.connection",
    "on_ray.nodes": "on_ray.cluster_state",
    "on_ray.probing": "on_ray.prepare",
    "on_ray.ranking": "on_ray.stopping",
    "on_ray.study": "on_ray.search",
    "on_ray.warm_start": "on_ray.plan",
}
"""Modules that objectives, judges and notebooks of version 0.1.0 may import, and where they are now."""


class _MovedModules:
    """Import a module by its name of version 0.1.0, with a warning that names the new one."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find a module that has moved."""
        moved = name.startswith(f"{__name__}.") and name.partition(".")[2] in _MOVED
        return ModuleSpec(name, _MovedModules) if moved else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Leave it to the import system."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Put the moved module in the place of the empty one."""
        name = module.__name__
        new = f"{__name__}.{_MOVED[name.partition('.')[2]]}"
        warnings.warn(f"{name} is {new} since version 0.2", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(new)


sys.meta_path.append(_MovedModules)
