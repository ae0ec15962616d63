"""One rank of a whole trial over gloo; started by test_run_trial.py."""

import json
import sys
from pathlib import Path

import torch

from slime_ray.config.experiment import Trial
from slime_ray.runs.store import RunStore
from slime_ray.training.loop import Runtime
from slime_ray.training.worker import run_trial

if __name__ == "__main__":
    trial_file, run, storage, how = sys.argv[1:]
    torch.distributed.init_process_group("gloo")
    run_trial(
        Trial.model_validate(json.loads(Path(trial_file).read_text())),
        run=Path(run),
        storage=RunStore(Path(storage)),
        report=lambda told: None,
        runtime=Runtime(sharded=how == "fsdp2", trackers=("tensorboard",)),
    )
    # Rank 0 alone shows the curves; a process without trackers imports none of them.
    found = {"tensorboardX", "tensorboard", "wandb", "mlflow"} & set(sys.modules)
    assert bool(found) == (torch.distributed.get_rank() == 0), found
    torch.distributed.destroy_process_group()
