"""The trackers that show a trial's curves while it trains: their names, and what this machine lacks for them."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Tracker = Literal[
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune",
    "swanlab", "tensorboard", "trackio", "wandb",
]  # fmt: skip
"""All that transformers knows as `report_to`."""
PACKAGES: dict[Tracker, str] = {"azure_ml": "azureml", "flyte": "flytekit", "tensorboard": "tensorboardX"}
"""Packages of another name than their tracker's."""
EXTRAS = ("tensorboard", "wandb", "mlflow")
DEFAULT: tuple[Tracker, ...] = ("tensorboard",)


def lacks(trackers: Iterable[Tracker], *, bucket: bool = False) -> str | None:
    """Say what this machine lacks for them, and the way out. bucket: runs are kept in an object store."""
    for tracker in trackers:
        package = PACKAGES.get(tracker, tracker)
        if tracker == "kubeflow":
            if not os.environ.get("KUBEFLOW_TRAINER_SERVER_URL"):
                return "trackers: kubeflow needs KUBEFLOW_TRAINER_SERVER_URL. Set it, or leave kubeflow out."
            continue
        spec = find_spec(package)
        # A folder of that name, such as a run's mlflow/, is found as well; it has no origin.
        if spec is None or (spec.origin is None and package != "azureml"):
            source = f"slime-ray[{tracker}]" if tracker in EXTRAS else package.replace("azureml", "azureml-core")
            return (
                f"trackers: {tracker} needs the package {package}, which is not installed. Install {source}, or leave "
                f"{tracker} out of `trackers`."
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
