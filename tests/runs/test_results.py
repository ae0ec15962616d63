"""The files of a run: written whole or not at all, read back as they were, refused when they are something else."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from slime_ray.errors import InputError
from slime_ray.runs import results, schema


def row(trial_id: str, **columns):
    defaults = {"phase": "arm", "label": "full", "seed": 0, "status": "completed", "overrides": {}, "settings": {}}
    return results.trial_row(trial_id=trial_id, **(defaults | columns))


def curve(trial_id: str) -> dict:
    about = {"trial_id": trial_id, "label": "full", "phase": "arm", "seed": 0}
    return {**about, "step": 1, "source": "train", "metric": "loss", "value": 0.5}


def answer(trial_id: str) -> dict:
    columns = dict.fromkeys(schema.ANSWER_SCHEMA.names)
    prompt = [{"role": "user", "content": 'say "hé"'}]
    return columns | {"trial_id": trial_id, "prompt_id": "p", "prompt": prompt, "answer": "hé\n\x00", "outcome": 0.5}


def pair(trial_id: str) -> dict:
    about = {"trial_id": trial_id, "label": "full", "phase": "arm", "seed": 0}
    return dict.fromkeys(schema.PAIR_SCHEMA.names, 1) | about | {"entropy": 0.25}


@pytest.fixture
def run(tmp_path):
    results.write_manifest(tmp_path, {"schema": schema.RUN_SCHEMA, "name": "r"})
    results.write_trial(
        tmp_path,
        row=row("a", overrides={"objective.anchor_weight": 0.3}),
        answers=[answer("a")],
        curves=[curve("a")],
        pairs=[pair("a")],
    )
    results.write_trial(tmp_path, row=row("b", status="failed", stability=0.0), answers=[], curves=[])
    return tmp_path


def test_what_was_written_is_read_back(run):
    results.consolidate(run)
    loaded = results.load(run)
    assert loaded.trials["trial_id"].tolist() == ["a", "b"]
    assert loaded.trials["knob.objective.anchor_weight"].tolist()[0] == 0.3
    assert pd.isna(loaded.trials["knob.objective.anchor_weight"].tolist()[1])
    assert json.loads(loaded.answers["prompt"][0])[0]["content"] == 'say "hé"'
    assert loaded.answers["answer"][0] == "hé\n\x00"
    assert loaded.curves["value"].tolist() == [0.5]
    assert loaded.pairs[["trial_id", "rejected_collapsed", "entropy"]].values.tolist() == [["a", 1, 0.25]]


@pytest.mark.parametrize("kept", ["trials", "together"])
def test_a_run_of_an_earlier_version_has_no_pairs_and_is_read(run, kept):
    results.consolidate(run)
    for file in run.rglob("pairs.parquet"):
        file.unlink()
    if kept == "together":
        shutil.rmtree(run / "trials")
    else:
        (run / "trials.parquet").unlink()
    loaded = results.load(run)
    assert loaded.pairs.empty
    assert loaded.pairs.columns.tolist() == schema.PAIR_SCHEMA.names
    assert loaded.trials["trial_id"].tolist() == ["a", "b"]


def test_a_run_of_an_earlier_version_lacks_columns_and_is_read_without_them(run):
    results.consolidate(run)
    later = ["attempts", "lost_seconds", "alarm", "planned_updates", "kept_update", "sft_checkpoint"]
    file = run / "trials.parquet"
    pd.read_parquet(file).drop(columns=later).to_parquet(file)
    trials = results.load(run).trials
    assert trials["trial_id"].tolist() == ["a", "b"]
    assert trials[later].isna().all(axis=None)


def test_a_trial_counts_only_once_its_last_file_is_written(run):
    (run / "trials" / "half").mkdir()
    (run / "trials" / "half" / "answers.parquet").write_bytes(b"PAR1 cut off")
    assert list(results.finished_trials(run)) == ["a", "b"]
    results.consolidate(run)
    assert len(results.load(run).trials) == 2


def test_knobs_that_are_not_numbers_stay_readable(run):
    results.write_trial(run, row=row("c", overrides={"objective": {"name": "dpo"}, "x.y": True}), answers=[], curves=[])
    results.consolidate(run)
    trials = results.load(run).trials.set_index("trial_id")
    assert json.loads(trials.loc["c", "knob.objective"]) == {"name": "dpo"}
    assert json.loads(trials.loc["c", "knob.x.y"]) is True


def test_numbers_that_are_not_finite_are_unknown(run):
    results.write_trial(run, row=row("c", win_rate=float("nan"), kl_to_sft=float("inf")), answers=[], curves=[])
    assert results.finished_trials(run)["c"]["win_rate"] is None
    assert results.finished_trials(run)["c"]["kl_to_sft"] is None


def test_an_unknown_column_is_refused_where_it_is_written():
    with pytest.raises(KeyError, match="win_rat"):
        row("a", win_rat=0.5)


def lose_curves(run) -> None:
    (run / "curves.parquet").unlink()
    shutil.rmtree(run / "trials")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "manifest.json").unlink(), "is not a run"),
        (lambda run: (run / "manifest.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "manifest.json").write_text('{"schema": "run-v9"}'), "schema 'run-v9'"),
        (lambda run: (run / "manifest.json").write_text("[]"), "schema 'list'"),
        (lambda run: (run / "trials.parquet").write_bytes(b"nothing"), r"trials\.parquet cannot be read"),
        (lambda run: pd.DataFrame({"a": [1]}).to_parquet(run / "answers.parquet"), "lacks the columns"),
        (lose_curves, "is missing"),
    ],
)
def test_a_damaged_run_is_a_sentence(run, damage, message):
    results.consolidate(run)
    damage(run)
    with pytest.raises(InputError, match=message):
        results.load(run)


def test_a_missing_run_and_a_run_without_trials_are_sentences(tmp_path):
    with pytest.raises(InputError, match="there is no such run"):
        results.load(tmp_path / "absent")
    results.write_manifest(tmp_path, {"schema": schema.RUN_SCHEMA})
    (tmp_path / "trials").mkdir()
    with pytest.raises(InputError, match="no trial has finished yet"):
        results.load(tmp_path)


@pytest.mark.parametrize("number", ["much", [1], {}])
def test_a_measure_that_is_no_number_is_a_trial_that_was_interrupted(run, number):
    mark = run / "trials" / "a" / "trial.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"win_rate": number}))
    assert list(results.finished_trials(run)) == ["b"]


def test_damaged_answers_of_a_finished_trial_are_a_sentence_with_a_way_out(run):
    (run / "trials" / "a" / "answers.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match=r"trials/a/answers\.parquet cannot be read.*--resume"):
        results.consolidate(run)


def test_a_run_that_was_killed_is_read_with_all_that_finished(run):
    results.consolidate(run)
    results.write_trial(run, row=row("c"), answers=[answer("c")], curves=[curve("c")])
    before = (run / "trials.parquet").read_bytes()
    loaded = results.load(run)
    assert loaded.trials["trial_id"].tolist() == ["a", "b", "c"]
    assert loaded.answers["trial_id"].tolist() == ["a", "c"]
    # Reading writes nothing: a run may lie where it can only be read.
    assert (run / "trials.parquet").read_bytes() == before


def test_a_trial_that_ran_again_is_read_as_it_is_now(run):
    results.consolidate(run)
    again = row("a", win_rate=0.7, started="2027-01-01T00:00:00+00:00")
    results.write_trial(run, row=again, answers=[], curves=[])
    assert results.load(run).trials.set_index("trial_id")["win_rate"]["a"] == 0.7


def test_a_copy_without_the_trials_folder_is_read(run):
    results.consolidate(run)
    shutil.rmtree(run / "trials")
    assert results.load(run).trials["trial_id"].tolist() == ["a", "b"]


def test_numbers_and_flags_keep_their_types_whatever_is_unknown(run):
    # Trial a knows hardly anything and b has no answers: columns of nulls.
    results.consolidate(run)
    loaded = results.load(run)
    texts = [field.name for schema in schema.SCHEMAS.values() for field in schema if field.type == "string"]
    for frame in (loaded.trials, loaded.answers, loaded.curves):
        assert [name for name in frame if frame[name].dtype == object and name not in texts] == []
    assert loaded.trials["healthy"].isna().all()
    assert loaded.trials["win_rate"].dtype == float


@pytest.mark.parametrize("consolidated", [True, False])
def test_answers_of_an_earlier_version_are_first_turns_without_a_category(run, consolidated):
    results.consolidate(run)
    for file in (run / "answers.parquet", run / "trials" / "a" / "answers.parquet"):
        pd.read_parquet(file).drop(columns=["turn", "category"]).to_parquet(file)
    if not consolidated:
        (run / "trials.parquet").unlink()
    answers = results.load(run).answers
    assert answers["turn"].tolist() == [1]
    assert answers["category"].isna().all()


def test_columns_of_another_type_are_a_sentence(run):
    results.consolidate(run)
    frame = pd.read_parquet(run / "trials.parquet").assign(win_rate="much")
    frame.to_parquet(run / "trials.parquet")
    with pytest.raises(InputError, match=r"trials\.parquet.*not a file of this schema"):
        results.load(run)


@pytest.mark.parametrize(
    "entry", [{"decoding": "greedy"}, {"seeds": 3}, {"experiment": []}, {"data": {"truncated": [1]}}, {"goals": "win"}]
)
def test_a_foreign_manifest_is_a_sentence_that_names_the_entry(run, entry):
    results.write_manifest(run, {"schema": schema.RUN_SCHEMA, **entry})
    with pytest.raises(InputError, match=rf"manifest\.json: {next(iter(entry))}.* should be"):
        results.read_manifest(run)


def a_run_of_schema_v1(folder: Path) -> Path:
    """A copy of a run of the schema run-v1, with `settings` and `config` as columns."""
    return shutil.copytree(Path(__file__).parent / "run-v1", folder / "run-v1")


@pytest.mark.parametrize("tables", ["written", "absent"])
def test_a_run_of_an_earlier_schema_is_read_with_todays_columns(tmp_path, tables):
    run = a_run_of_schema_v1(tmp_path)
    if tables == "absent":
        (run / "trials.parquet").unlink()
    trials = results.load(run).trials.set_index("trial_id")
    assert "config" not in trials
    assert json.loads(trials.loc["search-0001", "overrides"]) == {
        "objective.hard_margin": 2.0,
        "objective.name": "slime",
    }
    assert json.loads(trials.loc["search-0001", "settings"])["objective"] == {"name": "slime", "hard_margin": 2.0}
    assert trials.loc["search-0001", "knob.objective.hard_margin"] == 2.0
    assert json.loads(trials.loc["arm-full-s0", "overrides"]) == {}


def test_tables_that_are_written_again_have_todays_columns(tmp_path):
    run = a_run_of_schema_v1(tmp_path)
    results.consolidate(run)
    assert [name for name in pq.read_schema(run / "trials.parquet").names if name in ("config", "overrides")] == [
        "overrides"
    ]
