"""docs/your_model_and_data.md: the files of its first section are written as they stand there, and its commands are run."""

import json
import re
import runpy
from pathlib import Path

from slime_ray.cli import main
from slime_ray.runs import results

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your_model_and_data.md").read_text(encoding="utf-8")
SHOPS, DAYS = (
    ("bakery", "library", "museum", "pool"),
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday"),
)


def test_pairs_of_ones_own_are_trained_on_without_a_gpu_or_a_download(tmp_path, monkeypatch, capsys):
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
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs), encoding="utf-8")
    commands = re.findall(r"^```sh\npython tiny_model.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert commands == ["slime-ray check tiny.yaml\nslime-ray sweep tiny.yaml --name tiny\n"]
    monkeypatch.chdir(tmp_path)
    runpy.run_path("tiny_model.py", run_name="__main__")
    assert main(["check", "tiny.yaml"]) == 0
    assert "tiny.yaml: fine. 3 arms x 2 seeds." in capsys.readouterr().out
    short = ("--set", "sft.epochs=1", "--set", "training.updates=4", "--set", "faults.checkpoint_minutes=1e-6")
    assert main(["train", "tiny.yaml", "--trial", "arm-slime-s0", *short]) == 0
    [(trial, row)] = results.finished_trials(tmp_path / "runs" / "tiny-arm-slime-s0").items()
    assert (trial, row["status"]) == ("arm-slime-s0", "completed")
    assert row["preference_accuracy"] is not None
