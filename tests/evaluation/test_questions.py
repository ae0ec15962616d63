"""Questions of a file: which are refused, and that they are asked whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slime_ray.cli import main
from slime_ray.config.evaluation import Decoding
from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.presets import preset_base
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.evaluation.questions import check_questions, load_questions
from slime_ray.model.tiny import tiny_tokenizer
from slime_ray.training.prompts import prompts_to_answer, read_prompts, write_prompts

TASK = load_task("arithmetic")
ASKED = [row[0]["content"] for row in TASK.prompts(6, purpose="report", seed=0)["prompt"]]


def mt_bench(path: Path, *turns: list[str], category: str = "math") -> Path:
    rows = [{"question_id": 81 + n, "category": category, "turns": each} for n, each in enumerate(turns)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def experiment(tmp_path: Path, evaluation: dict[str, Any], **arms: dict[str, Any]) -> Experiment:
    space = {
        "name": "asked",
        "preset": "arithmetic",
        "base": {"evaluation": evaluation},
        "arms": arms or {"sft": {"training.updates": 0}},
    }
    path = tmp_path / "asked.yaml"
    path.write_text(json.dumps(space))
    return load_experiment(path)


def test_the_questions_are_the_report_prompts_and_the_data_keeps_the_others(tmp_path):
    file = mt_bench(tmp_path / "question.jsonl", ASKED[:2], ASKED[2:3])
    settings = experiment(tmp_path, {"questions": str(file)}).settings
    of_the_data = {name: [[{"role": "user", "content": text}] for text in ASKED] for name in ("selection", "report")}
    prompts, _ = prompts_to_answer(settings, of_the_data, tiny_tokenizer(TASK))
    assert [(each.id, each.category, list(each.later)) for each in prompts["report"]] == [
        ("81", "math", [ASKED[1]]), ("82", "math", [])
    ]  # fmt: skip
    assert prompts["report"][0].messages == [{"role": "user", "content": ASKED[0]}]
    assert [each.messages for each in prompts["selection"]] == of_the_data["selection"]
    for name, asked in prompts.items():
        write_prompts(tmp_path / name, asked)
        assert read_prompts(tmp_path / name) == [replace(each, later=list(each.later)) for each in asked]


def test_a_template_that_knows_one_turn_only_is_refused_before_anything_is_trained(tmp_path):
    file = mt_bench(tmp_path / "question.jsonl", ASKED[:2])
    settings = experiment(tmp_path, {"questions": str(file)}).settings
    tokenizer = tiny_tokenizer(TASK)
    tokenizer.chat_template = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + str(
        tokenizer.chat_template
    )
    of_the_data: dict[str, Any] = {name: [[{"role": "user", "content": ASKED[0]}]] for name in ("selection", "report")}
    with pytest.raises(InputError, match=r"cannot be rendered: refused by the chat template: one turn"):
        prompts_to_answer(settings, of_the_data, tokenizer)


def test_a_question_that_the_template_does_not_write_out_is_counted_and_refused_by_strict(tmp_path):
    file = mt_bench(tmp_path / "question.jsonl", ASKED[:2])
    settings = experiment(tmp_path, {"questions": str(file)}).settings
    tokenizer = tiny_tokenizer(TASK)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("messages", "messages[-2:]", 1)
    of_the_data: dict[str, Any] = {name: [[{"role": "user", "content": ASKED[0]}]] for name in ("selection", "report")}
    _, cuts = prompts_to_answer(settings, of_the_data, tokenizer)
    assert cuts["report"].rows_with_lost_text == 1
    strict = settings.model_copy(update={"data": settings.data.model_copy(update={"strict": True})})
    with pytest.raises(InputError, match="of prompts with text that the chat template leaves out"):
        prompts_to_answer(strict, of_the_data, tokenizer)


@pytest.mark.parametrize(
    ("evaluation", "complaint"),
    [
        ({"questions": "absent.jsonl"}, r"absent\.jsonl: there is no such file"),
        ({"questions": "broken.jsonl"}, r"broken\.jsonl:2: not JSON"),
        ({"questions": "foreign.jsonl"}, r"foreign\.jsonl:1: 'Who are you\?' is no prompt of the embedded task arith"),
        (
            {"questions": "fine.jsonl", "decoding": {"temperatures": {"maths": 0.0}}},
            r"'maths', which no question of .*fine\.jsonl has\. Its categories: math\.",
        ),
        ({"decoding": {"temperatures": {"math": 0.0}}}, r"prompts from the data have no categories"),
    ],
)
def test_bad_questions_are_refused_by_check_with_their_place(tmp_path, monkeypatch, capsys, evaluation, complaint):
    monkeypatch.chdir(tmp_path)
    fine = mt_bench(tmp_path / "fine.jsonl", ASKED[:2])
    (tmp_path / "broken.jsonl").write_text(fine.read_text() + "{\n")
    mt_bench(tmp_path / "foreign.jsonl", ["Who are you?"])
    bad = experiment(tmp_path, evaluation)
    with pytest.raises(InputError, match=complaint):
        check_questions(bad)
    assert main(["check", "asked.yaml"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_arms_own_questions_are_checked_too(tmp_path):
    fine = mt_bench(tmp_path / "fine.jsonl", ASKED[:2])
    foreign = mt_bench(tmp_path / "foreign.jsonl", ["Who are you?"])
    good = {"evaluation.questions": str(fine)}
    check_questions(experiment(tmp_path, {}, plain={}, other=good))
    with pytest.raises(InputError, match="Who are you"):
        check_questions(experiment(tmp_path, {}, plain=good, other={"evaluation.questions": str(foreign)}))


def test_mt_benchs_preset_decodes_as_mt_bench_does():
    """FastChat's temperature_config and its 1,024 new tokens; the shipped categories are those that differ from 0."""
    decoding = Decoding.model_validate(preset_base("arithmetic/mt-bench")["evaluation"]["decoding"])
    expected = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
    expected |= dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0)
    assert {category: decoding.temperature_of(category) for category in expected} == expected
    assert decoding.temperature_of(None) == 0.0
    assert (decoding.max_new_tokens, decoding.batch) == (1024, 256)


def test_questions_of_no_file_are_none(tmp_path):
    assert load_questions(experiment(tmp_path, {}).settings) == []
