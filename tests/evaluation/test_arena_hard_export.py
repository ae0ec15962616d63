"""A run in Arena-Hard's schema: what is written is read back, and Arena-Hard's rule gives the score that we give."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_ray.analysis.statistics import arena_hard_score

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.evaluation.field_files import answers_to, read_answers, read_judgments, read_questions
from slime_ray.evaluation.field_files.export_arena_hard import CATEGORY, export_arena_hard
from slime_ray.evaluation.field_files.scoring import judged_prompts
from slime_ray.evaluation.verdicts import POINTS_OF_A

from .exported_runs import add_trial, load


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def script_score(path: Path) -> float:
    """Arena-Hard's rule by hand: 3 votes for a `>>`, 1 for all else; game 2 has the model as A, game 1 as B; a prompt
    with a missing score is left out; the score is the mean of the votes.
    """
    as_a = {"A>>B": [1.0] * 3, "A>B": [1.0], "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
    votes: list[float] = []
    for row in lines(path):
        first, second = (game["score"] for game in row["games"])
        if first is not None and second is not None:
            votes += as_a[second] + [1 - vote for vote in as_a[first]]
    return sum(votes) / len(votes)


def test_a_run_becomes_the_files_that_arena_hard_reads(tmp_path):
    add_trial(tmp_path / "run", "arm-full-s0", [("A>>B", "B>A"), ("A=B", "A>B")])
    add_trial(tmp_path / "run", "arm-full-s1", [("B>A", "A>B"), (None, "A=B")], answer="b")
    out = tmp_path / "out"
    said = str(export_arena_hard(load(tmp_path / "run"), out))
    assert said == f"{out}: 2 questions, answers of 2 trials and the baseline, judgments of 2."
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "model_answer/arm-full-s0.jsonl",
        "model_answer/arm-full-s1.jsonl",
        "model_answer/baseline.jsonl",
        "model_judgment/exact/arm-full-s0.jsonl",
        "model_judgment/exact/arm-full-s1.jsonl",
        "question.jsonl",
    ]
    prompt = "question 0\u2028é"
    assert lines(out / "question.jsonl")[0] == {"uid": "p0", "category": CATEGORY, "prompt": prompt}
    answer = lines(out / "model_answer" / "arm-full-s1.jsonl")[0]
    assert len(answer.pop("ans_id")) == 22
    assert answer == {
        "uid": "p0",
        "model": "arm-full-s1",
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": "b 0"}}],
        "metadata": {"token_len": 3},
    }
    # The policy is much better as A (game 2), and better as B (game 1).
    assert lines(out / "model_judgment" / "exact" / "arm-full-s0.jsonl")[0] == {
        "uid": "p0",
        "category": CATEGORY,
        "judge": "exact",
        "model": "arm-full-s0",
        "baseline": "baseline",
        "games": [{"score": "B>A"}, {"score": "A>>B"}],
    }
    assert lines(out / "model_judgment" / "exact" / "arm-full-s1.jsonl")[1]["games"] == [
        {"score": "A=B"},
        {"score": None},
    ]


labels = st.sampled_from([*POINTS_OF_A, None])
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(st.lists(pairs, min_size=1, max_size=3), st.sampled_from(["exact", "org/judge:v1", "exakt [é]"]))
def test_any_run_that_is_exported_and_read_back_has_the_same_outcomes(trials, judge):
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder, "run"), Path(folder, "out")
        for number, verdicts in enumerate(trials):
            add_trial(run, f"arm-x-s{number}", verdicts, answer=f"by {number}", judge=judge)
        loaded = load(run)
        export_arena_hard(loaded, out)
        questions = read_questions(out / "question.jsonl")
        baseline = read_answers(out / "model_answer" / "baseline.jsonl")
        assert answers_to(questions, baseline) == baseline
        (judged,) = (out / "model_judgment").iterdir()
        for trial_id, frame in loaded.answers.groupby("trial_id"):
            answers = read_answers(out / "model_answer" / f"{trial_id}.jsonl")
            assert [answer.turns[0] for answer in answers] == frame["answer"].tolist()
            judgments = read_judgments(judged / f"{trial_id}.jsonl")
            assert {judgment.judge for judgment in judgments} == {judge}
            prompts = judged_prompts(judgments, [*answers, *baseline])
            assert [prompt.prompt_id for prompt in prompts] == frame["prompt_id"].tolist()
            assert [prompt.comparison.outcome for prompt in prompts] == [
                None if outcome != outcome else outcome for outcome in frame["outcome"]
            ]
            assert {(prompt.tokens, prompt.baseline_tokens) for prompt in prompts} == {(3, 2)}


valid = st.sampled_from(list(POINTS_OF_A))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(valid, valid), min_size=1, max_size=8))
def test_arena_hards_rule_on_the_files_gives_our_arena_hard_score(verdicts):
    with tempfile.TemporaryDirectory() as folder:
        add_trial(Path(folder, "run"), "arm-x-s0", verdicts)
        export_arena_hard(load(Path(folder, "run")), Path(folder, "out"))
        file = Path(folder, "out", "model_judgment", "exact", "arm-x-s0.jsonl")
        votes = [vote for prompt in judged_prompts(read_judgments(file)) for vote in prompt.votes]
        assert arena_hard_score(votes) == pytest.approx(script_score(file))


def test_arena_hards_score_of_a_small_run_by_hand(tmp_path):
    # Prompt 0: 3 votes won as A, 1 as B. Prompt 1: 0.5 as A, 1 vote lost as B. 4.5 of 6 votes.
    add_trial(tmp_path / "run", "arm-x-s0", [("A>>B", "B>A"), ("A=B", "A>B")])
    export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    file = tmp_path / "out" / "model_judgment" / "exact" / "arm-x-s0.jsonl"
    assert script_score(file) == 0.75
    assert arena_hard_score([v for prompt in judged_prompts(read_judgments(file)) for v in prompt.votes]) == 0.75


@pytest.mark.parametrize("judge", ["none", None])
def test_a_run_that_was_not_judged_has_answers_and_no_judgments(tmp_path, judge):
    add_trial(tmp_path / "run", "arm-x-s0", [(None, None)], judge=judge)
    exported = export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    assert (exported.models, exported.judged) == (1, 0)
    assert str(exported).endswith("no judgments, for no answer was judged.")
    assert not (tmp_path / "out" / "model_judgment").exists()


def test_a_trial_without_answers_is_left_out_and_a_run_of_such_is_refused(tmp_path):
    add_trial(tmp_path / "run", "arm-lost-s0", [])
    with pytest.raises(InputError, match="no trial has answers"):
        export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    assert export_arena_hard(load(tmp_path / "run"), tmp_path / "out").models == 1


def test_baselines_that_differ_are_different_models(tmp_path):
    add_trial(tmp_path / "run", "arm-a-s0", [("A>B", "B>A")])
    add_trial(tmp_path / "run", "arm-b-s0", [("A>B", "B>A")], baseline_answer="another")
    add_trial(tmp_path / "run", "arm-c-s0", [("A>B", "B>A"), ("A=B", "A=B")])
    add_trial(tmp_path / "run", "baseline", [("A>B", "B>A")])
    out = tmp_path / "out"
    export_arena_hard(load(tmp_path / "run"), out)
    judged = {path.stem: lines(path)[0]["baseline"] for path in (out / "model_judgment" / "exact").iterdir()}
    # A trial has the name "baseline", which no baseline may have then.
    assert judged == {
        "arm-a-s0": "baseline-2", "arm-b-s0": "baseline-3", "arm-c-s0": "baseline-2", "baseline": "baseline-2"
    }  # fmt: skip
    assert len(lines(out / "model_answer" / "baseline-2.jsonl")) == 2
    assert lines(out / "model_answer" / "baseline-3.jsonl")[0]["messages"][-1]["content"] == {"answer": "another"}


def test_a_prompt_of_several_messages_is_one_text_with_their_roles(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")], prompt=messages)
    export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    (question,) = read_questions(tmp_path / "out" / "question.jsonl")
    assert question.turns == ("system: Be brief.\n\nuser: Why?",)
    assert answers_to([question], read_answers(tmp_path / "out" / "model_answer" / "arm-x-s0.jsonl"))


def test_lengths_that_are_not_known_are_not_written(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")], answer_tokens=None)
    export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    assert lines(tmp_path / "out" / "model_answer" / "arm-x-s0.jsonl")[0]["metadata"] == {}


def test_two_answers_to_one_prompt_are_refused(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")] * 2, prompt_id="p")
    with pytest.raises(InputError, match=r"arm-x-s0 has 2 answers to 1 prompts.*--form mt-bench"):
        export_arena_hard(load(tmp_path / "run"), tmp_path / "out")


def test_exporting_again_changes_nothing_and_a_run_that_grew_adds_its_trials(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    add_trial(tmp_path / "run", "arm-x-s1", [("A>B", "B>A")])
    export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def test_files_of_others_are_left_as_they_are_and_nothing_is_written_beside_them(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    theirs = tmp_path / "out" / "model_judgment" / "exact" / "arm-x-s0.jsonl"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(InputError, match=r"arm-x-s0\.jsonl is there already and holds something else"):
        export_arena_hard(load(tmp_path / "run"), tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == "theirs"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"out.* cannot be written"):
        export_arena_hard(load(tmp_path / "run"), tmp_path / "out")


def test_the_command_says_what_it_wrote_and_refuses_what_is_no_run(tmp_path, capsys):
    add_trial(tmp_path / "run", "arm-x-s0", [("A>B", "B>A")])
    load(tmp_path / "run")
    assert cli.main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: 1 questions, answers of 1 trials")
    assert cli.main(["export", str(tmp_path / "out"), "--to", str(tmp_path / "again")]) == 2
    assert "is not a run" in capsys.readouterr().err
