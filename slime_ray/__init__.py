"""slime_ray: hyperparameter search and ablations for SLIME preference fine-tuning (arXiv 2602.02383).

SLIME is here Stabilized Likelihood Implicit Margin Enforcement, an objective; it is not THUDM/slime.
"""

from pathlib import Path

__version__ = "0.2.0.dev0"

# A wheel has `analysis` and `search_spaces` inside this package. A checkout has them at its top level, so its root
# joins the places where subpackages are looked up.
_package = Path(__file__).resolve().parent
if not (_package / "analysis").is_dir() and (_package.parent / "analysis" / "__init__.py").is_file():
    __path__.append(str(_package.parent))
