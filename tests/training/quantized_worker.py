"""trial_worker.py below the refusal of machines without a GPU; started by test_quantized.py."""

import runpy
from pathlib import Path

from slime_ray.training import stages

if __name__ == "__main__":
    stages.refuse_quantized = lambda model: None
    runpy.run_path(str(Path(__file__).with_name("trial_worker.py")), run_name="__main__")
