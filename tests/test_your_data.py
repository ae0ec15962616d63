"""docs/your_model_and_data.md: the files of its first section are written as they stand there, and its commands are run."""

import json
import re
import subprocess
import sys
from pathlib import Path

from slime_ray.runs import results
from tests.end_to_end.conftest import environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your_model_and_data.md").read_text(encoding="utf-8")
SHOPS, DAYS = (
    ("bakery", "library", "museum", "pool"),
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday"),
)


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pairs_of_ones_own_are_trained_on_without_a_gpu_or_a_download(tmp_path):
    """Up to one trial, with checkpoints on the way; a sweep of it is one more of the same kind."""
    files = dict(re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL))
    assert list(files) == ["tiny_model.py", "tiny.yaml"]
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    pairs = [
        {
            "prompt": f"When is the {shop} open on {day}, {n}?",
            "chosen": f"The {shop} opens at {n}.",
            "rejected": "No idea.",
        }
        for shop in SHOPS
        for day in DAYS
        for n in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    commands = re.findall(r"^```sh\npython tiny_model.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert commands == ["slime-ray check tiny.yaml\nslime-ray sweep tiny.yaml --name tiny\n"]
    run(tmp_path, "tiny_model.py")
    assert "tiny.yaml: fine. 3 arms x 2 seeds." in run(tmp_path, "-m", "slime_ray", "check", "tiny.yaml")
    short = ("--set", "sft.epochs=1", "--set", "training.updates=4", "--set", "faults.checkpoint_minutes=1e-6")
    run(tmp_path, "-m", "slime_ray", "train", "tiny.yaml", "--trial", "arm-slime-s0", *short)
    [(trial, row)] = results.finished_trials(tmp_path / "runs" / "tiny-arm-slime-s0").items()
    assert (trial, row["status"]) == ("arm-slime-s0", "completed")
    assert row["preference_accuracy"] is not None
