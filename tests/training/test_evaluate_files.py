"""`slime-ray evaluate` of files of answers, which need no model."""

import json

import pytest

from slime_ray import cli
from slime_ray.runs import results
from tests.evaluation.judges.batch_server import batching
from tests.evaluation.judges.judge_server import KEY, VARIABLE, Response, completion, serving

from .small_trials import evaluated

pytestmark = pytest.mark.usefixtures("sketched")
WAY = [("q1", "Say hello."), ("q2", "Count to three."), ("q3", "Name a colour.")]


def write(path, answers):
    rows = [{"id": name, "prompt": text, "answer": answer} for (name, text), answer in zip(WAY, answers, strict=False)]
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


def test_an_evaluation_is_not_resumed_with_another_baseline_or_other_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("slime_ray.evaluation.judges.load_scorer", lambda place: longest)
    given = files(tmp_path)
    evaluated(*given, storage=tmp_path / "runs", name="files")
    again = ["evaluate", *map(str, given), "--storage", str(tmp_path / "runs"), "--name", "files", "--resume"]
    assert cli.main(again) == 0
    write(tmp_path / "theirs.jsonl", ["another", "baseline", "now"])
    assert cli.main(again) == 2
    assert "the baseline has changed since the run was started" in capsys.readouterr().err
    without = [word for word in again if word not in ("--baseline", str(tmp_path / "theirs.jsonl"))]
    assert cli.main(without) == 2
    assert "the baseline has changed since the run was started" in capsys.readouterr().err
    write(tmp_path / "theirs.jsonl", ["hi", "one two three", "blue"])
    write(tmp_path / "mine.jsonl", ["other", "answers", "now"])
    assert cli.main(again) == 2
    assert "the policy mine has changed since the run was started" in capsys.readouterr().err


def test_a_judge_that_runs_out_says_so_and_what_it_took(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, KEY)
    with serving() as server:
        llm = (
            f"name: llm, model: rule, template: arena-hard, base_url: '{server.url}', api_key_env: {VARIABLE}, "
            "concurrency: 1, on_failure: continue, budget: {requests: 3}, prices: {input: 100, output: 1000}"
        )
        command = [*files(tmp_path)[:-1], f"evaluation.judge={{{llm}}}"]
        run = evaluated(*command, storage=tmp_path / "runs", name="poor")
        asked = len(server.requests)
    printed = " ".join(capsys.readouterr().out.split())
    # The third answers are equal, and tie unseen; of the four other verdicts one is missing. 110 tokens each.
    assert run.trials["prompts"].tolist() == [3]
    assert asked == 3
    assert "Missing verdicts of all trials: 1 since budget.requests 3 is spent." in printed
    assert "The judge took 3 requests and 330 tokens in this run so far, cost 0.06." in printed


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
        (
            lambda arguments, tmp: [*arguments[:2], write(tmp / "short.jsonl", ["a", "b"]), *arguments[2:]],
            "short.jsonl has no answer to 1 of 3 questions, the first 'q3'",
        ),
        (
            lambda arguments, tmp: [*arguments[:3], write(tmp / "short.jsonl", ["a", "b"]), *arguments[4:]],
            "short.jsonl has no answer to 1 of 3 questions, the first 'q3'",
        ),
    ],
    ids=["no-judge", "no-questions", "one-name", "nothing-there", "second-file-lacks-one", "baseline-lacks-one"],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, change, said):
    (tmp_path / "sub").mkdir()
    arguments = change(files(tmp_path), tmp_path)
    options = ["--storage", str(tmp_path / "runs"), "--name", "refused"]
    assert cli.main(["evaluate", *map(str, arguments), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs" / "refused").exists()


def unsure(prompt: str, answer: str) -> float:
    return float("nan") if answer == "one two" else len(answer)


def test_missing_scores_and_failed_answers_are_told_on_the_terminal_in_the_log_and_in_the_report(tmp_path, capsys):
    command = files(tmp_path, f"{__name__}:unsure")
    write(tmp_path / "theirs.jsonl", ["hi", "one two three", "$ERROR$"])
    run = evaluated(*command, storage=tmp_path / "runs", name="unsure")
    printed = " ".join(capsys.readouterr().out.split())
    log = (run.path / "log.txt").read_text(encoding="utf-8")
    page = (run.path / "report" / "report.html").read_text(encoding="utf-8")
    for told in (printed, log):
        assert "1 scores are missing: the scorer gave an answer no score (NaN or None)" in told
        assert "1 comparisons were not judged, since an answer is $ERROR$" in told
    assert "4 missing verdicts: between 33.3 and 100.0 %" in printed
    assert "Missing verdicts of all trials: 1 since the scorer gave an answer no score" in page
    assert "Of all trials 1 comparisons were not judged" in page
    # One prompt is left.
    assert "too few prompts for an interval" in printed
    assert run.trials["win_rate"].tolist() == [1.0]
    assert run.answers["outcome"].isna().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "cut off by max_tokens 2048; raise evaluation.judge.max_tokens"), ("stop", None)],
)
def test_a_judge_that_was_cut_off_is_told_from_one_without_a_verdict(tmp_path, monkeypatch, capsys, finish, reason):
    monkeypatch.setenv(VARIABLE, KEY)
    with serving(lambda *_: Response(body=completion(None, finish=finish))) as server:
        llm = (
            f"name: llm, model: rule, template: arena-hard, base_url: '{server.url}', api_key_env: {VARIABLE}, asks: 1"
        )
        run = evaluated(*files(tmp_path)[:-1], f"evaluation.judge={{{llm}}}", storage=tmp_path / "runs", name="cut")
    printed = " ".join(capsys.readouterr().out.split())
    assert (f"4 verdicts are missing: {reason}" in printed) == (reason is not None)
    assert ("4 judgments were invalid" in printed) == (reason is None)
    page = (run.path / "report" / "report.html").read_text(encoding="utf-8")
    assert f"4 since {reason or 'no valid verdict'}" in page


def against_good(number, body):
    return "[[3]]" if "good good" in body["messages"][-1]["content"] else "[[5]]"


def test_a_panel_of_two_endpoints_is_asked_resumed_and_reported(tmp_path, monkeypatch, capsys):
    """One of them is asked in a batch."""
    monkeypatch.setenv(VARIABLE, KEY)
    given = files(tmp_path)[:-2]
    write(tmp_path / "mine.jsonl", ["good good", "good", "blue"])
    write(tmp_path / "theirs.jsonl", ["good", "plain", "blue"])
    command = ["evaluate", *map(str, given), "--storage", str(tmp_path / "runs"), "--name", "panel"]
    with serving() as live, batching(looks=2) as batches:
        batches.say = against_good

        def panel(wait):
            common = f"name: llm, api_key_env: {VARIABLE}, model"
            first = f"{{{common}: one, template: arena-hard, base_url: '{live.url}'}}"
            slow = f"mode: batch, poll_seconds: 0.001, wait_seconds: {wait}"
            second = f"{{{common}: two, template: mt-bench-single, base_url: '{batches.url}', {slow}}}"
            return ["--set", f"evaluation.judge=[{first}, {second}]"]

        assert cli.main([*command, *panel(0)]) == 1
        assert "the batch batch-0 has not ended after 0 s" in capsys.readouterr().err
        asked = len(live.requests)
        assert cli.main([*command, *panel(60), "--resume"]) == 0
        # Of the three questions one has equal answers, which tie for the first judge unseen, in both orders.
        assert (asked, len(live.requests), len(batches.batches)) == (4, 4, 1)
    run = results.load(tmp_path / "runs" / "panel")
    # The first prefers mine, mine and neither; the second theirs, and neither twice.
    assert run.trials["win_rate"].tolist() == pytest.approx([(0.5 + 0.75 + 0.5) / 3])
    assert sorted({name.split("#")[0] for name in run.verdicts["judge"]}) == [
        "llm:one:arena-hard",
        "llm:two:mt-bench-single",
    ]
    page = (run.path / "report" / "report.html").read_text(encoding="utf-8")
    assert "llm:one:arena-hard" in page
    assert "llm:two:mt-bench-single" in page
    everything = [path for path in run.path.rglob("*") if path.is_file()]
    assert not [path for path in everything if KEY.encode() in path.read_bytes()]
