"""`slime-ray evaluate`: checkpoints and trials, measured without a sweep, and their exports."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_ray import cli
from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.chat_template import stop_token_ids
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.evaluation.field_files import answers_to, read_answers, read_questions
from slime_ray.model.loading import load_checkpoint
from slime_ray.runs import schema
from slime_ray.runs.store import RunStore
from slime_ray.training.adapters import check_stage
from slime_ray.training.evaluate import _at_checkpoint
from slime_ray.training.export import export_model
from slime_ray.training.outcome import say_nothing
from slime_ray.training.worker import run_trial
from tests.model.tiny_files import change_json, change_weights, cut, without

from .small_trials import evaluated

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
pytestmark = pytest.mark.usefixtures("sketched")
DOCS = Path(__file__).parents[2] / "docs" / "field_files.md"
GREEDY = ["--set", "evaluation.decoding.temperature=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A space file, a storage, and the row of a trial that a sweep would have trained in it."""
    root = tmp_path_factory.mktemp("given")
    (root / "given.yaml").write_text(TEXT)
    trial = arm_trials(load_experiment(root / "given.yaml"))[0]
    row = run_trial(trial, run=root / "runs" / "first", storage=RunStore(root / "runs"), report=say_nothing)
    return root / "given.yaml", root / "runs", row


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
    sft = next(path for path in (storage / ".stages").glob("sft-*") if path.is_dir())
    whole = evaluated(space, sft, storage=storage, name="whole")
    assert whole.trials["unlearning"][0] == 0
    assert whole.trials["kl_to_sft"][0] == pytest.approx(0, abs=1e-6)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def elsewhere(trained, tmp_path_factory):
    """A trial as docs/field_files.md has it answered elsewhere: its greedy answers, exported, and a model to load."""
    space, storage, row = trained
    folder, trial = tmp_path_factory.mktemp("elsewhere"), storage / "first" / "trials" / row["trial_id"]
    own = evaluated(space, trial, *GREEDY, storage=storage, name="own")
    assert cli.main(["export", str(storage / "own"), "--to", str(folder)]) == 0
    assert cli.main(["export", str(storage / "first"), row["trial_id"], "--to", str(folder / "merged"), "--merge"]) == 0
    return folder, own


def test_answers_of_another_engine_measure_as_the_trials_own(trained, elsewhere):
    """The other engine is transformers without anything of ours, one prompt at a time."""
    (space, storage, _), (folder, own) = trained, elsewhere
    lm, tokenizer = (kind.from_pretrained(folder / "merged") for kind in (AutoModelForCausalLM, AutoTokenizer))
    rows = []
    for question in lines(folder / "question.jsonl"):
        talk = [{"role": "user", "content": question["prompt"]}]
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = lm.generate(**ids, max_new_tokens=24, do_sample=False, eos_token_id=stop_token_ids(tokenizer))
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append({"id": question["uid"], "prompt": question["prompt"], "answer": text})
    engine = folder / "engine.jsonl"
    engine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = evaluated(space, engine, *GREEDY, storage=storage, name="theirs")
    assert theirs.answers["answer"].tolist() == own.answers["answer"].tolist()
    assert theirs.trials["label"].tolist() == ["engine"]
    same = ["win_rate", "prompts", "length_shift", "format_valid"]
    assert theirs.trials[same].iloc[0].tolist() == pytest.approx(own.trials[same].iloc[0].tolist())
    # Nobody can tell it of a text.
    assert theirs.trials["unlearning"].isna().all()


def test_an_exported_trial_and_its_baseline_are_judged_again_from_their_files(trained, elsewhere):
    (_, storage, _), (folder, own) = trained, elsewhere
    (trial,) = own.trials["trial_id"]
    answers = folder / "model_answer"
    run = evaluated(
        "answers", answers / f"{trial}.jsonl", "--baseline", answers / "baseline.jsonl",
        "--set", f"evaluation.questions={folder / 'question.jsonl'}",
        "--set", f"evaluation.judge={{name: exact, scorer: '{__name__}:arithmetic'}}",
        storage=storage, name="again-from-files",
    )  # fmt: skip
    assert run.answers["outcome"].tolist() == own.answers["outcome"].tolist()
    assert run.manifest["judge"] == f"exact:{__name__}:arithmetic"


def arithmetic(prompt: str, answer: str) -> float:
    return load_task("arithmetic").score(prompt, answer).total


class _Answered(list):
    """Stands for a data set of Ray: what is mapped stays a list."""

    iter_rows = list.__iter__


def test_the_program_for_vllm_writes_a_file_that_is_read(elsewhere, tmp_path, monkeypatch):
    """vLLM needs a GPU. Here its place is taken by a function, and Ray Data's by a list; the settings are Ray's own."""
    pytest.importorskip("ray.data.llm", reason="older Ray needs ray[serve] for it", exc_type=ImportError)
    (code,) = re.findall(r"```python\n(import json\n\nimport ray\n.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    seen = []

    def build_processor(config, preprocess, postprocess):
        def engine(row):
            # As Ray does: what comes in stays, and `postprocess` alone says what goes out.
            row |= preprocess(row)
            seen.append((config, row))
            asked = row["messages"][-1]["content"]
            return postprocess(row | {"prompt": f"<|user|>{asked}", "generated_text": f"answer to {asked}"})

        return lambda rows: _Answered(map(engine, rows))

    monkeypatch.setattr("ray.data.llm.build_processor", build_processor)
    monkeypatch.setattr("ray.data.from_items", list)
    shutil.copy(elsewhere[0] / "question.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    questions = read_questions(tmp_path / "question.jsonl")
    answers = answers_to(questions, read_answers(tmp_path / "vllm.jsonl"))
    assert [answer.turns for answer in answers] == [(f"answer to {question.turns[0]}",) for question in questions]
    assert {config.model_source for config, _ in seen} == {"merged"}


def refused(capsys, space, policy, storage):
    """Standard error of an evaluation that refuses a policy and leaves no run."""
    assert cli.main(["evaluate", str(space), str(policy), "--storage", str(storage), "--name", "refused"]) == 2
    assert not (storage / "refused").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["adapter", "whole model"])
def test_a_policy_that_lacks_weights_is_refused_by_their_names(trained, tmp_path, capsys, lacking):
    space, storage, row = trained
    policy, weights = tmp_path / "policy", "adapter_model.safetensors"
    if lacking == "adapter":
        shutil.copytree(storage / "first" / "trials" / row["trial_id"] / "checkpoint", policy)
    else:
        shutil.copytree(next(path for path in (storage / ".stages").glob("sft-*") if path.is_dir()), policy)
        weights = "model.safetensors"
    change_weights(policy / weights, without("layers.0.self_attn.v_proj"))
    assert f"{policy} cannot be loaded" in (said := refused(capsys, space, policy, storage))
    assert "layers.0.self_attn.v_proj" in said


@pytest.mark.parametrize("base", ["the stage of the experiment", "a stage elsewhere"])
def test_an_adapter_of_other_sft_weights_is_not_measured(trained, tmp_path, capsys, base):
    """Of the same recipe, so of the same name: only the weights differ."""
    space, storage, row = trained
    policy = tmp_path / "policy"
    shutil.copytree(storage / "first" / "trials" / row["trial_id"] / "checkpoint", policy)
    if base == "a stage elsewhere":
        sft = next(path for path in (storage / ".stages").glob("sft-*") if path.is_dir())
        shutil.copytree(sft, tmp_path / "elsewhere")
        change_json(policy / "adapter_config.json", base_model_name_or_path=str(tmp_path / "elsewhere"))
    change_json(policy / "made.json", sft_weights="0123")
    said = refused(capsys, space, policy, storage)
    assert f"holds other weights than those that {policy} was trained on" in said


def test_an_adapter_is_measured_on_what_it_was_trained_on(trained, tmp_path, capsys):
    """On the SFT checkpoint of this experiment wherever its storage is, else on its own base, which is said."""
    space, storage, row = trained
    moved, foreign = tmp_path / "moved", tmp_path / "foreign"
    shutil.copytree(storage / "first" / "trials" / row["trial_id"] / "checkpoint", moved)
    name = Path(json.loads((moved / "adapter_config.json").read_text())["base_model_name_or_path"]).name
    change_json(moved / "adapter_config.json", base_model_name_or_path=f"/elsewhere/runs/.stages/{name}")
    sft = storage / ".stages" / name
    shutil.copytree(sft, tmp_path / "base")
    change_weights(
        tmp_path / "base" / "model.safetensors", lambda found: {key: 1.1 * value for key, value in found.items()}
    )
    shutil.copytree(moved, foreign)
    change_json(foreign / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
    load_checkpoint(foreign, dtype="float32").save_pretrained(tmp_path / "merged")
    run = evaluated(space, moved, foreign, tmp_path / "merged", storage=storage, name="three")
    drift = dict(zip(run.trials["label"], run.trials["mean_margin"], strict=True))
    assert drift["moved"] == pytest.approx(row["mean_margin"], rel=1e-4)
    assert drift["foreign"] == pytest.approx(drift["merged"], rel=1e-4)
    assert drift["foreign"] != pytest.approx(drift["moved"], rel=1e-2)
    note = f"The adapter {foreign} was merged into its base {tmp_path / 'base'}."
    assert run.manifest["data"]["model_notes"] == [note]
    assert note in capsys.readouterr().out
    change_json(foreign / "adapter_config.json", base_model_name_or_path="/elsewhere/runs/.stages/sft-0123")
    assert "its base /elsewhere/runs/.stages/sft-0123 is not here" in refused(capsys, space, foreign, storage)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, which is not asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def downloaded(cache, name, folder):
    """Put a folder where `snapshot_download` keeps a model of that name."""
    model = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, model / "snapshots" / ("0" * 40))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)


def test_a_model_of_the_hub_measures_as_its_folder_does(trained, tmp_path, hub_cache):
    space, storage, row = trained
    checkpoint = storage / "first" / "trials" / row["trial_id"] / "checkpoint"
    downloaded(hub_cache, "org/tuned", checkpoint)
    sft = Path(json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"])
    downloaded(hub_cache, "org/base", sft)
    run = evaluated(space, "org/tuned", "org/base", "--baseline", "org/base", storage=storage, name="hub")
    assert run.manifest["baseline"] == "org-base"
    tuned, base = run.trials.set_index("label").loc[["org-tuned", "org-base"]].to_dict("records")
    assert tuned["mean_margin"] == pytest.approx(row["mean_margin"], rel=1e-4)
    assert tuned["kl_to_sft"] == pytest.approx(row["kl_to_sft"], rel=1e-4)
    assert (base["unlearning"], base["kl_to_sft"]) == pytest.approx((0, 0), abs=1e-6)


def test_a_name_that_is_neither_here_nor_in_the_cache_of_the_hub_is_refused(trained, tmp_path, capsys, hub_cache):
    space, storage, _ = trained
    said = refused(capsys, space, "org/nowhere", storage)
    assert "org/nowhere is no policy: there is no such file or folder here, and it cannot be had from the Hub" in said
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("a data set")
    downloaded(hub_cache, "org/data", tmp_path / "empty")
    assert "on the Hub it has neither config.json nor adapter_config.json" in refused(
        capsys, space, "org/data", storage
    )


def test_a_whole_model_is_exported_in_the_dtype_that_is_asked_for(trained, tmp_path):
    _, storage, row = trained
    given = ["export", str(storage / "first"), row["trial_id"], "--to", str(tmp_path / "out"), "--merge"]
    assert cli.main([*given, "--dtype", "bfloat16"]) == 0
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert lm.dtype == torch.bfloat16
    assert lm.generation_config.eos_token_id
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers"
    assert "slime" in card.data.tags
    assert row["trial_id"] in card.text


@pytest.mark.parametrize(("recipe", "refused"), [("the stage's", True), ("another", False)])
def test_hashes_of_a_run_count_for_trials_on_its_own_sft_checkpoint(trained, tmp_path, recipe, refused):
    """A search over `sft` has stages of its own, and of earlier versions the manifest alone has a hash."""
    _, storage, row = trained
    shutil.copytree(storage / "first", tmp_path / "first")
    [stage] = (path for path in (storage / ".stages").glob("sft-*") if path.is_dir())
    as_of_an_earlier_version(tmp_path / "first")
    key = stage.name.removeprefix("sft-") if refused else recipe
    change_json(tmp_path / "first" / "manifest.json", hashes={"sft_weights": "0", "sft_checkpoint": key})
    adapter = tmp_path / "first" / "trials" / row["trial_id"] / "checkpoint"
    with pytest.raises(InputError, match="other weights") if refused else nullcontext():
        check_stage(adapter, stage)


def as_of_an_earlier_version(run):
    """The hash of the SFT weights is in the manifest alone, and is another one."""
    (run / "trials" / "arm-slime-s0" / "checkpoint" / "made.json").unlink()
    manifest = {"schema": schema.RUN_SCHEMA, "hashes": {"sft_weights": "0"}}
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda run: shutil.rmtree(run / "trials" / "arm-slime-s0" / "checkpoint"), "kept no model"),
        (lambda run: shutil.rmtree(run / "trials" / "arm-slime-s0"), "has no finished trial arm-slime-s0"),
        (lambda run: shutil.rmtree(run.parent / ".stages"), "is an adapter on the SFT checkpoint sft-"),
        (
            lambda run: change_json(run / "trials" / "arm-slime-s0" / "checkpoint" / "made.json", sft_weights="0"),
            "holds other weights",
        ),
        (as_of_an_earlier_version, "holds other weights"),
        (lambda run: cut(run / "trials" / "arm-slime-s0" / "checkpoint" / "made.json"), "is not valid JSON"),
        (
            lambda run: change_json(run / "trials" / "arm-slime-s0" / "trial.json", status="diverged", reason="NaN"),
            "diverged (NaN), so it has no model",
        ),
        (
            lambda run: change_json(
                next((run.parent / ".stages").glob("sft-*/config.json")), quantization_config={"quant_method": "fp8"}
            ),
            "quantized weights",
        ),
        (lambda run: cut(run / "trials" / "arm-slime-s0" / "checkpoint" / "adapter_config.json"), "is not valid JSON"),
        (lambda run: cut(run / "trials" / "arm-slime-s0" / "checkpoint" / "adapter_model.safetensors"), "cut short"),
        (
            lambda run: change_json(
                run / "trials" / "arm-slime-s0" / "trial.json",
                settings='{"model": {"source": "embedded/arithmetic", "attention": "flex"}}',
            ),
            "does not know (model.attention: 'flex'). Export it with the version",
        ),
        (lambda run: (run.parent / "out").mkdir() or (run.parent / "out" / "mine").touch(), "is there already"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(trained, tmp_path, change, sentence):
    _, storage, _ = trained
    shutil.copytree(storage / "first", tmp_path / "first")
    shutil.copytree(storage / ".stages", tmp_path / ".stages")
    change(tmp_path / "first")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as raised:
        export_model(tmp_path / "first", "arm-slime-s0", tmp_path / "out", merge=True, facts={})
    assert sentence in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trial_from_one_of_several_checkpoints_is_measured_against_that(tmp_path):
    design = {"design": "leave_one_out", "components": ["anchor"]}
    across = {"name": "a", "preset": "arithmetic", "ablate": design, "across": {"sft.seed": [3, 0]}}
    experiment = load_experiment(across)
    folders = []
    for trial in arm_trials(experiment):
        folders.append(tmp_path / trial.trial_id)
        folders[-1].mkdir()
        row = dict.fromkeys(("phase", "label", "status", "overrides")) | {"trial_id": trial.trial_id}
        row["settings"] = trial.settings.model_dump_json()
        (folders[-1] / "trial.json").write_text(json.dumps(row))
    for folder in folders:
        start = _at_checkpoint(experiment, [folder]).settings.sft
        assert start is not None
        assert folder.name == f"{folder.name.split('-sft')[0]}-sft{start.seed}-s0"
    with pytest.raises(InputError, match=r"sft.seed 0, 3.*one at a time"):
        _at_checkpoint(experiment, folders)
