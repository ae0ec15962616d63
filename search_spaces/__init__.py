"""The experiments that ship with the package, one YAML each."""

from pathlib import Path

from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import InputError, near

_FOLDER = Path(__file__).resolve().parent


def shipped_spaces() -> dict[str, Path]:
    """Path of every shipped experiment by its name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def shipped_designs() -> list[str]:
    """Names of those that are designs of an ablation."""
    return [name for name, path in shipped_spaces().items() if "ablate" in load_yaml(path).data]


def find_space(given: str) -> Path:
    """The file that a user means: a path, or the name of a shipped experiment. Raises InputError with the nearest."""
    path = Path(given)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    spaces = shipped_spaces()
    if given not in spaces:
        raise InputError(
            f"{given}: no such file, and no shipped experiment of that name{near(given, spaces)}. `slime-ray spaces` "
            "says what they are."
        )
    return spaces[given]


def describe_spaces() -> dict[str, str]:
    """Every shipped experiment with its one-line summary."""
    return {name: str(load_yaml(path).data.get("summary", "")) for name, path in shipped_spaces().items()}
