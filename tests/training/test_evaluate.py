"""`slime-ray evaluate`: checkpoints, trials and files of answers, measured without a sweep."""

import json
import shutil

import pytest

from slime_ray import cli, results
from slime_ray.experiment import arm_trials
from slime_ray.experiment_file import load_experiment
from slime_ray.mirror import Mirror
from slime_ray.training.outcome import say_nothing
from slime_ray.training.worker import run_trial

TEXT = """\
name: given
preset: arithmetic
base:
  data: {sft_examples: 400, pairs: 64, held_out_pairs: 24}
  model: {lora: {rank: 4, alpha: 8.0, targets: [q_proj, v_proj]}}
  sft: {updates: 30}
  training: {updates: 6, pairs_per_update: 16, evaluations: 2, learning_rate: 1e-2}
  evaluation: {prompts: 16, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 24}}
arms: {slime: {}}
"""
WAY = [("q1", "Say hello."), ("q2", "Count to three."), ("q3", "Name a colour.")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A space file, a storage, and the row of a trial that a sweep would have trained in it."""
    root = tmp_path_factory.mktemp("given")
    (root / "given.yaml").write_text(TEXT)
    trial = arm_trials(load_experiment(root / "given.yaml"))[0]
    row = run_trial(trial, run=root / "runs" / "first", storage=Mirror(root / "runs"), report=say_nothing)
    return root / "given.yaml", root / "runs", row


def evaluated(*arguments, storage, name):
    assert cli.main(["evaluate", *map(str, arguments), "--storage", str(storage), "--name", name]) == 0
    return results.load(storage / name)


def test_a_trials_checkpoint_measures_as_the_trial_did(trained):
    space, storage, row = trained
    trial = storage / "first" / "trials" / row["trial_id"]
    run = evaluated(space, trial, storage=storage, name="again")
    [found] = run.trials.to_dict("records")
    assert found["label"] == "arm-slime-s0"
    same = (
        "win_rate",
        "unlearning",
        "rejected_collapse",
        "entropy_shift",
        "broken_outputs",
        "kl_to_sft",
        "mean_margin",
    )
    assert {name: found[name] for name in same} == pytest.approx({name: row[name] for name in same}, rel=1e-4, abs=1e-6)
    # No training was seen, so T costs nothing; the trial was too short for any.
    assert found["training_spikes"] != found["training_spikes"]
    assert found["stability"] == pytest.approx(row["stability"], rel=1e-4)
    assert len(run.answers) == 16
    assert len(run.pairs) == 24


def test_the_checkpoint_itself_is_a_baseline_like_any(trained, tmp_path):
    """Against itself, with answers of another seed, a policy neither wins nor shifts."""
    space, storage, row = trained
    checkpoint = storage / "first" / "trials" / row["trial_id"] / "checkpoint"
    run = evaluated(space, checkpoint, "--baseline", checkpoint, storage=storage, name="itself")
    assert run.manifest["baseline"] == "arm-slime-s0"
    assert run.trials["win_rate"][0] == pytest.approx(0.5, abs=0.35)
    sft = next((storage / ".stages").glob("sft-*"))
    whole = evaluated(space, sft, storage=storage, name="whole")
    assert whole.trials["unlearning"][0] == 0
    assert whole.trials["kl_to_sft"][0] == pytest.approx(0, abs=1e-6)


def write(path, answers):
    rows = [{"id": name, "prompt": text, "answer": answer} for (name, text), answer in zip(WAY, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def longest(prompt: str, answer: str) -> int:
    return len(answer.split())


def files(tmp_path, scorer=f"{__name__}:longest"):
    questions = write(tmp_path / "questions.jsonl", ["", "", ""])
    mine = write(tmp_path / "mine.jsonl", ["hello there friend", "one two", "blue"])
    theirs = write(tmp_path / "theirs.jsonl", ["hi", "one two three", "blue"])
    judge = f"evaluation.judge={{name: exact, scorer: '{scorer}'}}"
    return ["answers", mine, "--baseline", theirs, "--set", f"evaluation.questions={questions}", "--set", judge]


def test_files_of_answers_are_compared_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("slime_ray.evaluation.judges.load_scorer", lambda place: longest)
    run = evaluated(*files(tmp_path), storage=tmp_path / "runs", name="files")
    [found] = run.trials.to_dict("records")
    # Longer, shorter, equal.
    assert (found["label"], found["win_rate"], found["prompts"]) == ("mine", 0.5, 3)
    assert run.answers["prompt_id"].tolist() == ["q1", "q2", "q3"]
    assert run.answers["answer_tokens"].tolist() == [3, 2, 1]
    assert found["stability"] != found["stability"]
    assert "mine" in (tmp_path / "runs" / "files" / "report" / "win_rate_stability.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arguments, tmp: arguments[:-2], "evaluation.judge is none"),
        (lambda arguments, tmp: arguments[:4] + arguments[6:], "need the questions"),
        (
            lambda arguments, tmp: [*arguments[:2], write(tmp / "sub" / "mine.jsonl", ["a", "b", "c"]), *arguments[2:]],
            "same name",
        ),
        (lambda arguments, tmp: [arguments[0], tmp / "nowhere", *arguments[2:]], "is no policy"),
    ],
    ids=["no-judge", "no-questions", "one-name", "nothing-there"],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, change, said):
    (tmp_path / "sub").mkdir()
    arguments = change(files(tmp_path), tmp_path)
    options = ["--storage", str(tmp_path / "runs"), "--name", "refused"]
    assert cli.main(["evaluate", *map(str, arguments), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs" / "refused").exists()


def test_a_scorer_that_fails_is_named(tmp_path, capsys):
    options = ["--storage", str(tmp_path / "runs"), "--name", "broken"]
    assert cli.main(["evaluate", *map(str, files(tmp_path, "operator:concat")), *options]) == 2
    assert "The scorer of the judge exact:operator:concat fails on the answer" in capsys.readouterr().err


def test_a_broken_checkpoint_is_named(trained, tmp_path, capsys):
    space, storage, row = trained
    broken = tmp_path / "broken"
    shutil.copytree(storage / "first" / "trials" / row["trial_id"] / "checkpoint", broken)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    options = ["--storage", str(storage), "--name", "broken"]
    assert cli.main(["evaluate", str(space), str(broken), *options]) == 2
    assert f"{broken} cannot be loaded" in capsys.readouterr().err
