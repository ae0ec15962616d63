"""A run is resumed, extended and cloned with the inputs that it was started with, or not at all."""

import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from slime_ray import cli
from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError
from slime_ray.runs import inputs, results
from slime_ray.runs.folder import lock_run, refuse_other_stages
from slime_ray.runs.store import RunStore
from slime_ray.training.loop import Runtime
from slime_ray.training.orders import Paused
from slime_ray.training.worker import run_trial
from tests.analysis.conftest import add_trial

TEXT = """\
name: first
base:
  model: {source: m, tokenizer: t, chat_template: own.jinja}
  data: {train: pairs.jsonl}
  objective: {name: slime}
  training: {learning_rate: 1e-4, updates: 2}
  evaluation: {questions: questions.jsonl, judge: {name: reward_model, model: reward}}
arms:
  slime: {}
  other: {data.train: more}
  mixed: {data.train: [{source: one.csv, weight: 2}, {source: two.tsv, weight: 1}]}
search: {objective.hard_margin: {uniform: [0.5, 3.0]}}
budget: {trials: 3}
"""
FILES = {
    "data.train": "pairs.jsonl",
    "evaluation.questions": "questions.jsonl",
    "model.source": "m/model.safetensors",
    "model.tokenizer": "t/tokenizer.json",
    "model.chat_template": "own.jinja",
    "evaluation.judge.model": "reward/model-00001-of-00002.safetensors",
    "other: data.train": "more/part-1.jsonl",
    "mixed: data.train.0.source": "one.csv",
    "mixed: data.train.1.source": "two.tsv",
}
FOLDERS = ("m/config.json", "t/tokenizer_config.json", "reward/config.json", "more/part-2.jsonl")


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """An experiment whose files are all there, though nothing could be trained on them."""
    monkeypatch.chdir(tmp_path)
    for name in (*FILES.values(), *FOLDERS):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"content of {name}")
    Path("first.yaml").write_text(TEXT)
    return tmp_path / "first.yaml"


def held(source: Path, *, start: Any = "resume", hashes: dict[str, str] | None = None) -> dict[str, Any]:
    """Take the run as every command that trains does, and write its manifest as after the shared stages."""
    experiment = load_experiment(source)
    run = source.parent / "runs" / experiment.name
    with lock_run(run, experiment, source=source, seed=0, start=start) as manifest:
        results.write_manifest(run, manifest | {"hashes": hashes or {}})
    return results.read_manifest(run)


@pytest.mark.parametrize(("setting", "file"), FILES.items())
def test_a_run_is_not_resumed_with_an_input_that_has_changed(source, setting, file):
    before = held(source, start="fresh")["inputs"]
    assert set(before) == set(FILES)
    # A copy, a checkout, a download: other times, same content.
    os.utime(file, ns=(1, 1))
    inputs._cached_digest.cache_clear()
    assert held(source)["inputs"] == before
    Path(file).write_text(f"Content of {file}")
    with pytest.raises(InputError, match=f"{setting} has changed since .*its hash was {before[setting][:12]}, and is "):
        held(source)
    assert results.read_manifest(source.parent / "runs" / "first")["inputs"] == before
    Path(file).write_text(f"content of {file}")
    assert held(source)["inputs"] == before


def test_clone_refuses_a_changed_input_and_writes_nothing(source, capsys):
    held(source, start="fresh")
    run = source.parent / "runs" / "first"
    add_trial(run, "search-0001", phase="search", overrides={"objective.hard_margin": 2.0}, won=[1.0])
    command = ["clone", str(run), "search-0001", "--set", "objective.hard_margin=2.5"]
    Path("pairs.jsonl").write_text("other")
    assert cli.main(command) == 2
    assert "data.train has changed since the run was started" in capsys.readouterr().err
    assert not (run / "instructions").exists()


def test_what_was_cut_off_before_its_stages_were_made_is_resumed_with_other_inputs(source):
    experiment, run = load_experiment(source), source.parent / "runs" / "first"
    with lock_run(run, experiment, source=source, seed=0, start="fresh"):
        pass
    Path("pairs.jsonl").write_text("other")
    with lock_run(run, experiment, source=source, seed=0, start="resume") as manifest:
        assert manifest["inputs"] == inputs.hashes_of(experiment)


def test_a_run_of_an_earlier_version_is_resumed_and_guarded_from_then_on(source):
    held(source, start="fresh")
    run = source.parent / "runs" / "first"
    results.write_manifest(run, {key: value for key, value in results.read_manifest(run).items() if key != "inputs"})
    Path("pairs.jsonl").write_text("other")
    assert held(source)["inputs"]
    Path("pairs.jsonl").write_text("yet another")
    with pytest.raises(InputError, match=r"data\.train has changed"):
        held(source)


@pytest.fixture
def small_samples(monkeypatch) -> None:
    """A thousandth of the sizes, so that tests need no large files."""
    monkeypatch.setattr(inputs, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(inputs, "SAMPLE_BYTES", 4)


@pytest.mark.parametrize("place", [0, 0.37, 1])
def test_a_change_of_a_large_file_is_seen_wherever_it_begins(tmp_path, small_samples, place):
    file, content = tmp_path / "model.bin", bytearray(os.urandom(100_000))
    file.write_bytes(content)
    before = inputs.hash_of(file)
    # A thousand samples: one in a hundred bytes.
    start = int(place * (len(content) - 200))
    content[start : start + 200] = bytes(200)
    file.write_bytes(content)
    os.utime(file, ns=(2, 2))
    assert inputs.hash_of(file) != before


@pytest.mark.parametrize("weight", ["embed", "layer", "score", "bias"])
def test_one_weight_of_a_large_model_that_is_another_is_seen(tmp_path, small_samples, weight):
    """Such as the head of a reward model, a few thousandths of its file."""
    weights = {"embed": torch.randn(300, 100), "layer": torch.randn(100, 100), "score": torch.randn(1, 100)}
    weights["bias"] = torch.randn(1)
    file = tmp_path / "model.safetensors"
    save_file(weights, file)
    before = inputs.hash_of(file)
    save_file(weights | {weight: weights[weight] + 1e-3}, file)
    os.utime(file, ns=(2, 2))
    assert inputs.hash_of(file) != before
    save_file(weights, file)
    os.utime(file, ns=(3, 3))
    assert inputs.hash_of(file) == before


def test_an_adapter_changes_with_the_base_that_it_names(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, name, text in (
        (base, "config.json", "{}"),
        (base, "model.safetensors", "weights"),
        (adapter, "adapter_config.json", json.dumps({"base_model_name_or_path": str(base)})),
        (adapter, "adapter_model.safetensors", "adapters"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    before = inputs.hash_of(adapter)
    (base / "model.safetensors").write_text("Weights")
    assert inputs.hash_of(adapter) != before


def test_what_a_model_folder_keeps_beside_the_model_is_no_input(source):
    before = inputs.hash_of(Path("m"))
    for name in ("README.md", ".git/HEAD", "runs/events.json", "checkpoint-5/model.safetensors", "loss.png"):
        (Path("m") / name).parent.mkdir(exist_ok=True)
        (Path("m") / name).write_text("new")
    assert inputs.hash_of(Path("m")) == before
    (Path("m") / "chat_template.jinja").write_text("new")
    assert inputs.hash_of(Path("m")) != before


@pytest.mark.parametrize("changed", ["scoring/rules.py", "scoring/__init__.py", "scoring/words/list.py", "helper_x.py"])
def test_code_that_a_scorer_imports_is_an_input_too(tmp_path, monkeypatch, changed):
    files = {
        "scoring/__init__.py": "",
        "scoring/rules.py": "from .words import list as words\nimport json, helper_x\ndef score(prompt, answer): return 0",
        "scoring/words/__init__.py": "",
        "scoring/words/list.py": "WORDS = ()",
        "helper_x.py": "import torch",
        "unrelated_x.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.partition(".")[0] in ("scoring", "helper_x")]:
        monkeypatch.delitem(sys.modules, module)
    source = tmp_path / "first.yaml"
    source.write_text(
        "name: first\npreset: arithmetic\nbase: {evaluation: {judge: {name: exact, scorer: 'scoring.rules:score'}}}\n"
        "arms: {slime: {}}\n"
    )
    code = held(source, start="fresh")["code"]
    assert set(code) == {"scoring.rules:score", "scoring", "scoring.words", "scoring.words.list", "helper_x"}
    trial = tmp_path / "runs" / "first" / "trials" / "arm-slime-s0"
    trial.mkdir(parents=True)
    row = {"trial_id": trial.name, "overrides": "{}", "phase": "arm", "label": "slime", "status": "completed"}
    (trial / "trial.json").write_text(json.dumps(row))
    (tmp_path / changed).write_text(files[changed] + "\n# another line")
    with pytest.raises(InputError, match=r"first: the code of (scoring|helper_x).* has changed"):
        held(source)


def test_stages_that_are_made_again_have_to_be_the_same(tmp_path):
    before = {"train_data": "a" * 16, "sft_checkpoint": "b" * 16, "sft_weights": "c" * 16}
    refuse_other_stages(tmp_path, {}, before)
    refuse_other_stages(tmp_path, {"hashes": before}, before)
    # Made of files with other times, to the same weights.
    refuse_other_stages(tmp_path, {"hashes": before}, {**before, "sft_checkpoint": "d" * 16, "new": "e"})
    for name in ("train_data", "sft_weights"):
        with pytest.raises(
            InputError, match=rf"stage {name} has changed .*its hash was {before[name][:12]}, and is ffff"
        ):
            refuse_other_stages(tmp_path, {"hashes": before}, {**before, name: "f" * 16})
    del before["sft_weights"]
    with pytest.raises(InputError, match="stage sft_checkpoint has changed"):
        refuse_other_stages(tmp_path, {"hashes": before}, {**before, "sft_checkpoint": "f" * 16})


@pytest.mark.parametrize("file", ["pairs.jsonl", "m/model.safetensors", "reward/config.json"])
def test_a_trial_sees_what_changed_since_its_sweep_began(source, file):
    experiment = load_experiment(source)
    before = inputs.digests(experiment)
    assert inputs.change(before, experiment.settings) is None
    assert inputs.change({}, experiment.settings) is None
    Path(file).write_text("other")
    said = inputs.change(before, experiment.settings)
    assert said is not None
    assert str(Path(file).absolute()).startswith(said.split(" changed while")[0])


def test_a_trial_pauses_before_it_computes_anything_from_a_changed_input(source, tmp_path):
    """Its sweep then ends with the reason; there is no row, and nothing failed."""
    trial = arm_trials(load_experiment(source))[0]
    runtime = Runtime(inputs={str((tmp_path / "pairs.jsonl").absolute()): "0" * 64})
    run = tmp_path / "runs" / "first"
    with pytest.raises(
        Paused, match=r"pairs\.jsonl changed while the run was at work .its hash was 000000000000, and is"
    ):
        run_trial(trial, run=run, storage=RunStore(tmp_path / "runs"), report=lambda told: None, runtime=runtime)
    assert results.finished_trials(run) == {}
    assert not (tmp_path / "runs" / ".stages").exists()


def test_this_package_is_no_code_of_the_users_where_their_file_lies_in_its_checkout(monkeypatch):
    root = Path(inputs.__file__).parents[2]
    file = root / "own_scorer_for_a_test.py"
    monkeypatch.setattr(
        inputs, "_file_of", lambda module: {"own": file, "slime_ray": root / "slime_ray/__init__.py"}.get(module)
    )
    monkeypatch.setattr(inputs, "_imports", lambda file, package: ["slime_ray", "slime_ray.errors"])
    assert inputs._modules("own") == {"own": file}


def test_an_environment_in_the_users_folder_is_no_code_of_theirs(tmp_path, monkeypatch):
    site = tmp_path / ".venv" / "site-packages"
    site.mkdir(parents=True)
    (site / "installed_x.py").write_text("")
    (tmp_path / "scoring_x.py").write_text("import installed_x\ndef score(prompt, answer): return 0")
    for folder in (tmp_path, site):
        monkeypatch.syspath_prepend(folder)
    places = sysconfig.get_paths()
    monkeypatch.setattr(inputs.sysconfig, "get_paths", lambda: places | {"purelib": str(site)})
    source = tmp_path / "first.yaml"
    source.write_text(
        "name: first\npreset: arithmetic\nbase: {evaluation: {judge: {name: exact, scorer: 'scoring_x:score'}}}\n"
        "arms: {slime: {}}\n"
    )
    assert set(held(source, start="fresh")["code"]) == {"scoring_x:score"}
