"""The trackers that show a trial's curves while it trains: their names, and what this machine lacks for them."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Tracker = Literal["tensorboard", "wandb", "mlflow"]
PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
DEFAULT: tuple[Tracker, ...] = ("tensorboard",)


def lacks(trackers: Iterable[Tracker], *, bucket: bool = False) -> str | None:
    """What this machine lacks for them, as a sentence with the way out. bucket: runs are kept in an object store."""
    for tracker in trackers:
        found = find_spec(PACKAGES[tracker])
        # A folder of that name, such as a run's mlflow/, is found as well; it has no origin.
        if found is None or found.origin is None:
            return (
                f"trackers: {tracker} needs the package {PACKAGES[tracker]}, which is not installed. Install "
                f"slime-ray[{tracker}], or leave {tracker} out of `trackers`."
            )
    if "mlflow" in trackers and bucket and not os.environ.get("MLFLOW_TRACKING_URI"):
        return (
            "trackers: mlflow keeps its files in the run's folder, which trials on several machines cannot share in an "
            "object store. Set MLFLOW_TRACKING_URI to a server, or leave mlflow out of `trackers`."
        )
    online = "wandb" in trackers and os.environ.get("WANDB_MODE") == "online"
    if online and not os.environ.get("WANDB_API_KEY") and not Path("~/.netrc").expanduser().is_file():
        return "trackers: WANDB_MODE is online, and there is no key. Set WANDB_API_KEY, or unset WANDB_MODE."
    return None
