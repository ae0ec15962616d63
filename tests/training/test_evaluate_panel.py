"""`slime-ray evaluate` with a panel of two language models at two endpoints, one of them asked in a batch."""

import json

import pytest

from slime_ray import cli
from slime_ray.runs import results
from tests.evaluation.judges.batch_server import batching
from tests.evaluation.judges.judge_server import KEY, VARIABLE, serving

QUESTIONS = ["Say hello.", "Count to three.", "Name a colour."]
MINE, THEIRS = ["good good", "good", "blue"], ["good", "plain", "blue"]


@pytest.fixture
def command(tmp_path):
    """Both files of answers, and the evaluation of one against the other."""
    for name, answers in (("questions", QUESTIONS), ("mine", MINE), ("theirs", THEIRS)):
        rows = [
            {"id": f"q{number}", "prompt": prompt, "answer": answer}
            for number, (prompt, answer) in enumerate(zip(QUESTIONS, answers, strict=True))
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "evaluate", "answers", str(tmp_path / "mine.jsonl"), "--baseline", str(tmp_path / "theirs.jsonl"),
        "--set", f"evaluation.questions={tmp_path / 'questions.jsonl'}",
        "--storage", str(tmp_path / "runs"), "--name", "panel",
    ]  # fmt: skip


def against_good(number, body):
    return "[[3]]" if "good good" in body["messages"][-1]["content"] else "[[5]]"


def test_a_panel_of_two_endpoints_is_asked_resumed_and_reported(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, KEY)
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
