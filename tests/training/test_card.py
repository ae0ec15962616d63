"""What a model card says beyond the table's row, and that its experiment is one."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.settings import Settings
from slime_ray.training.card import model_card

BASE: dict[str, Any] = {
    "model": {"source": "some/model", "lora": {"rank": 4}},
    "data": {"train": "some/pairs"},
    "objective": {"name": "slime"},
    "training": {"updates": 6, "learning_rate": 1e-4},
    "evaluation": {"judge": "none"},
}
LLM = {"name": "llm", "template": "arena-hard"}
ROW = {
    "trial_id": "arm-slime-s0",
    "phase": "arm",
    "label": "slime",
    "seed": 3,
    "overrides": "{}",
    "updates": 6,
    "kept_update": 4,
}


def card(**changes: Any) -> str:
    settings = Settings.model_validate({**BASE, **changes})
    return str(model_card(settings, ROW, run="first", name="model", adapter=True, facts={"win rate": "60.0"}).text)


def test_files_of_one_name_stay_different_ones(tmp_path):
    """`data.train` refuses a data set that is named twice."""
    files = [str(tmp_path / name) for name in ("a/pairs.jsonl.gz", "b/pairs.jsonl.gz", "c/pairs-2.jsonl.gz")]
    text = card(
        data={"train": [{"source": file} for file in files]},
        model={"source": str(tmp_path / "m/base"), "tokenizer": str(tmp_path / "m/base")},
    )
    experiment = load_experiment(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]))
    sources = [Path(each.source).name for each in experiment.settings.data.sources]
    assert sources == ["pairs.jsonl.gz", "pairs-2.jsonl.gz", "pairs-2-2.jsonl.gz"]
    assert f"| preference data | {', '.join(sources)} |" in text
    assert experiment.settings.model.source == experiment.settings.model.tokenizer
    assert "Different files of one name are numbered." in text
    assert str(tmp_path) not in text
    assert "are numbered" not in card(data={"train": files[0]})


def test_a_model_that_kept_its_best_weights_says_of_which_update_they_are():
    assert "| weights |" not in card()
    kept = card(training={**BASE["training"], "evaluations": 3, "keep": {"mean_margin": "maximize"}})
    assert "| weights | of update 4 of 6, whose mean_margin was best |" in kept


@pytest.mark.parametrize("evaluation", [{"judge": "none"}, {"judge": [LLM | {"model": "m"}, LLM | {"model": "n"}]}])
def test_the_experiment_of_a_card_is_one_that_is_accepted(evaluation):
    [text] = re.findall(r"```yaml\n(.*?)```", card(evaluation=evaluation), re.DOTALL)
    experiment = load_experiment(yaml.safe_load(text))
    assert [(arm.label, experiment.seeds) for arm in experiment.arms] == [("slime", [3])]
    assert experiment.settings.data.train == "some/pairs"


def test_a_card_names_the_code_of_the_users_that_its_experiment_imports(tmp_path, monkeypatch):
    (tmp_path / "own_judge.py").write_text("def score(prompt, answer):\n    return 0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = card(evaluation={"judge": {"name": "exact", "scorer": "own_judge:score"}})
    assert "in the folder where it is started. It imports `own_judge:score` from there, too." in text
    assert "It imports" not in card()
