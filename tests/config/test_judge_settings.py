"""The schema of `evaluation.judge`: what it accepts, what it says, and what a judge's identity follows from."""

import pytest

from slime_ray.config.experiment import Experiment, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.judge import JUDGE_SETTINGS, Llm, shipped_templates
from slime_ray.errors import InputError

LLM = "{name: llm, model: gpt-4.1, template: arena-hard"


@pytest.fixture
def experiment(tmp_path):
    def load(judge: str) -> Experiment:
        path = tmp_path / "e.yaml"
        path.write_text(
            f"name: e\npreset: arithmetic\nbase:\n  evaluation:\n    judge: {judge}\n"
            "arms: {a: {}}\ngoals: {preference_accuracy: maximize, stability: maximize}\n"
        )
        return load_experiment(path)

    return load


def test_judges_are_named_as_text_or_with_their_settings(experiment):
    assert experiment("none").settings.judge_identity == "none"
    assert experiment("exact").settings.judge_identity == "exact:arithmetic"
    assert experiment("{name: exact, scorer: 'my.module:score'}").settings.judge_identity == "exact:my.module:score"
    reward = experiment("{name: reward_model, model: org/reward, tie_band: 0.1}").settings
    assert reward.judge_identity.startswith("reward_model:org/reward#")
    assert experiment(LLM + "}").settings.judge_identity.startswith("llm:gpt-4.1:arena-hard#")


@pytest.mark.parametrize(
    ("judge", "complaint"),
    [
        ("exat", r"e.yaml:5: evaluation.judge.name is 'exat'. Did you mean 'exact'\?"),
        ("{model: x}", "evaluation.judge.name is missing. Give one of: none, exact, reward_model, llm, panel"),
        ("reward_model", "evaluation.judge.model is missing"),
        ("{name: reward_model, model: x, tie_bnd: 1}", r"tie_bnd: unknown key. Did you mean 'tie_band'\?"),
        ("{name: reward_model, model: x, tie_band: -1}", "evaluation.judge.tie_band is -1"),
        (
            "{name: llm, model: x, template: arena-hrd}",
            r"neither a .yaml file nor a shipped template. Did you mean 'arena-hard'\?",
        ),
        ("{name: llm, model: x, template: nowhere.yaml}", "nowhere.yaml: there is no such file"),
        (LLM + ", budget: {cost: 3}}", "budget.cost needs prices"),
        (LLM + ", budget: {euros: 3}}", "evaluation.judge.budget.euros: unknown key"),
        (LLM + ", base_url: 'http://me:secret@host/v1'}", "holds more than an address"),
        (LLM + ", base_url: 'http://host:99999/v1'}", "Port out of range"),
        ("{name: llm, model: x, template: ~nobody-of-this-name/own.yaml}", "is no path of this machine"),
        (LLM + ", base_url: 'ftp://host'}", "is not an address such as https://"),
        (LLM + ", request: {stream: true}}", "holds stream, which is fixed by the judge"),
        (LLM + ", request: {max_completion_tokens: 9}}", "which is evaluation.judge.max_tokens"),
        (LLM + ", request: {extra_body: {top_k: 1}}}", "Write the fields of the body themselves"),
        (LLM + ", request: {metadata: {api_key: x}}}", "looks like a secret"),
        (LLM + ", repeats: 0}", "repeats.times is 0"),
        (LLM + ", repeats: {times: 2, share: 1.5}}", "repeats.share is 1.5"),
        ("[exact]", "judges"),
        (f"[{LLM}}}, {LLM}}}]", "judges has llm:gpt-4.1:arena-hard#.* twice. Leave one out, or give it `repeats`"),
        (f"[exact, {LLM}, tepmerature: 0}}]", "judge.judges.1.tepmerature: unknown key. Did you mean 'temperature'"),
        ("[exact, none]", "judges.1.name is 'none'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(experiment, judge, complaint):
    with pytest.raises(InputError, match=complaint):
        experiment(judge)


def test_a_list_of_judges_is_a_panel_whose_name_has_all_of_them(experiment):
    settings = experiment(f"[exact, {LLM}, repeats: 3}}]").settings
    alone = experiment(LLM + "}").settings.judge_identity
    assert settings.judge_identity == f"panel:exact:arithmetic + {alone} x3"
    assert [judge.name for judge in settings.evaluation.judge.members] == ["exact", "llm"]
    dumped = type(settings).model_validate_json(settings.model_dump_json())
    assert dumped.judge_identity == settings.judge_identity


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_shown(experiment):
    with pytest.raises(InputError, match="name of an environment variable") as refused:
        experiment(LLM + ", api_key_env: sk-proj-1234}")
    assert "sk-proj" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "system: only\n",
        "user: no places\n",
        "user: '{question} {answer} {answer_a}'\n",
        "user: '{question} {answer}'\nextra: x\n",
        "user: {question: 1}\n",
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(experiment, tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=r"own.yaml|user holds"):
        experiment(f"{{name: llm, model: x, template: {tmp_path}/own.yaml}}")


@pytest.mark.parametrize(
    "changed",
    [
        "model: gpt-5",
        "template: mt-bench-single",
        "temperature: 0.5",
        "max_tokens: 100",
        "request: {reasoning_effort: low}",
    ],
)
def test_an_identity_changes_with_all_that_verdicts_follow_from(experiment, changed):
    key, _, value = changed.partition(": ")
    given = {"name": "llm", "model": "gpt-4.1", "template": "arena-hard", key: value}
    other = "{" + ", ".join(f"{name}: {value}" for name, value in given.items()) + "}"
    assert experiment(other).settings.judge_identity != experiment(LLM + "}").settings.judge_identity


@pytest.mark.parametrize("judge", ["{}", "[exact, {}]"])
def test_how_a_judge_runs_may_change_while_a_run_is_gone_on_with(experiment, judge):
    """A spent budget can be raised, and a local server may come back at another address."""
    more = ", budget: {requests: 50}, base_url: 'http://other:8000/v1', concurrency: 2, retries: 1}"
    before = experiment(judge.replace("{}", LLM + ", budget: {requests: 5}}"))
    after = experiment(judge.replace("{}", LLM + more))
    assert before.fingerprint == after.fingerprint
    assert [trial.config_hash for trial in arm_trials(before)] == [trial.config_hash for trial in arm_trials(after)]
    assert before.settings.judge_identity == after.settings.judge_identity
    warmer = experiment(judge.replace("{}", LLM + ", temperature: 0.7}"))
    assert warmer.fingerprint != before.fingerprint
    assert arm_trials(warmer)[0].config_hash != arm_trials(before)[0].config_hash


def test_trials_carry_the_content_of_a_template_and_need_no_file(experiment, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("user: '{question} {answer}'\n")
    (trial,) = arm_trials(experiment(f"{{name: llm, model: x, template: {own}}}"))
    own.unlink()
    again = type(trial).model_validate_json(trial.model_dump_json())
    assert again.settings.judge_identity == trial.settings.judge_identity
    assert isinstance(again.settings.evaluation.judge, Llm)
    assert not again.settings.evaluation.judge.template.pairwise


def test_the_shipped_templates_can_be_used_and_every_judge_has_its_name():
    assert shipped_templates() == ("arena-hard", "mt-bench-single")
    assert list(JUDGE_SETTINGS) == ["none", "exact", "reward_model", "llm", "panel"]
