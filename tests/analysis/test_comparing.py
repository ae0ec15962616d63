"""Runs beside each other: what differs between their manifests, one table of all, and whether two agree."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from slime_ray.analysis import comparing
from slime_ray.analysis.comparing import compare, differences, verify, why_not_comparable

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.runs import results
from tests.analysis.conftest import add_trial, finish
from tests.analysis.ends import difference_ends

PROMPTS = 24


def run_of(
    folder: Path, shares: dict[str, float], *, seeds: int = 2, stability: float = 0.5, answer=str, **manifest
) -> Path:
    """A run of arms that won a share of the prompts each, the first ones."""
    for label, share in shares.items():
        won = round(share * PROMPTS)
        for seed in range(seeds):
            add_trial(
                folder, f"arm-{label}-s{seed}", label=label, seed=seed, won=[1.0] * won + [0.0] * (PROMPTS - won),
                answer=answer, pairs=40, stability=stability,
            )  # fmt: skip
    return finish(folder, manifest)


def test_a_run_agrees_with_itself_letter_by_letter(one_trial_run, tmp_path):
    again = tmp_path / "again"
    again.symlink_to(one_trial_run)
    found = verify(results.load(one_trial_run), results.load(again))
    assert found.differences == ()
    assert found.agree
    assert found.identical


def test_runs_whose_win_rates_are_far_apart_do_not_agree(tmp_path):
    one = run_of(tmp_path / "one", {"a": 0.25, "b": 0.5})
    other = run_of(tmp_path / "other", {"a": 0.75, "b": 0.5})
    found = verify(results.load(one), results.load(other))
    rows = found.table.frame.set_index("label")
    assert rows.loc["a", "difference"] == pytest.approx(-0.5)
    assert not rows.loc["a", "agrees"]
    assert rows.loc["b", "agrees"]
    assert not found.agree
    assert "They do not agree." in found.text()


def test_runs_that_differ_by_a_prompt_agree_without_being_identical(tmp_path):
    one = run_of(tmp_path / "one", {"a": 12 / 24})
    other = run_of(tmp_path / "other", {"a": 13 / 24}, answer=lambda index: f"other {index}")
    found = verify(results.load(one), results.load(other))
    assert found.agree
    assert not found.identical
    assert found.table.frame["same_answers"].tolist() == [0.0]


def test_the_more_rows_there_are_the_more_one_of_them_may_differ_by_chance(tmp_path):
    # Five prompts of 24 more are won: no resample of 270 leaves all of them out, (19 / 24)^24. That is less than one of
    # 40, as 95 % intervals cut off, and more than one of 400, as those of ten rows do.
    found = []
    for count in (1, 10):
        runs = []
        for won in (6, 11):
            for row in range(count):
                of_row = 12 if row else won
                outcomes = [1.0] * of_row + [0.0] * (24 - of_row)
                add_trial(tmp_path / f"{won}-{count}", f"row{row}", won=outcomes)
            runs.append(results.load(finish(tmp_path / f"{won}-{count}")))
        found.append(verify(*runs))
    assert [one.agree for one in found] == [False, True]
    assert "99.5 % intervals" in found[1].table.notes[0]


def seeds_run(folder, seeds, shift=0, **trial):
    """One row whose outcomes are those of its seeds, whatever other seeds the run has."""
    for seed in seeds:
        won = np.random.default_rng([seed, shift]).choice([0.0, 0.5, 1.0], PROMPTS).tolist()
        add_trial(folder, f"arm-a-s{seed}", label="a", seed=seed, won=won, stability=0.9 - 0.1 * seed, **trial)
    return results.load(finish(folder))


def test_runs_of_unequal_seeds_are_compared_on_those_that_both_have(tmp_path):
    five, eight = seeds_run(tmp_path / "five", range(5)), seeds_run(tmp_path / "eight", range(8))
    found = verify(five, eight)
    (row,) = found.table.frame.to_dict("records")
    assert found.agree
    assert row["difference"] == 0
    assert row["difference_low"] == -row["difference_high"] < 0
    assert (row["win_rate_1"], row["stability_1"]) == (row["win_rate_2"], row["stability_2"])
    assert row["remark"] == "left out: seeds 5, 6, 7 of the second run"
    assert (
        compare([five, eight]).notes[1]
        == "a: seeds 5, 6, 7 of eight are not in all of these runs; `verify` leaves them out."
    )
    # What is compared is the two-way interval of the brute-force difference on the common seeds.
    other = seeds_run(tmp_path / "other", range(3, 8), shift=1)
    (row,) = verify(eight, other).table.frame.to_dict("records")
    wins = [
        [np.array(run.answers.query(f"seed == {seed}").sort_values("prompt_id")["outcome"]) for seed in range(3, 8)]
        for run in (eight, other)
    ]
    d = np.array(wins[0]) - np.array(wins[1])
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(difference_ends(d))


def test_runs_without_a_seed_in_common_do_not_agree(tmp_path):
    found = verify(seeds_run(tmp_path / "one", (0, 1)), seeds_run(tmp_path / "other", (2, 3)))
    (row,) = found.table.frame.to_dict("records")
    assert not found.agree
    assert "no seed in common" in row["remark"]
    assert np.isnan(row["difference"])


def test_answers_are_compared_between_the_same_seeds(tmp_path):
    for name in ("one", "other"):
        for seed in (0, 1):
            # The second seed of the other run answers otherwise.
            said = str(seed) if name == "one" else "0"
            add_trial(
                tmp_path / name, f"arm-a-s{seed}", label="a", seed=seed, won=[1.0] * 4, answer=lambda _, it=said: it
            )
        finish(tmp_path / name)
    found = verify(results.load(tmp_path / "one"), results.load(tmp_path / "other"))
    assert found.table.frame["same_answers"].tolist() == [0.5]


def test_stabilities_far_apart_do_not_agree():
    one, near, far = (
        {"stability": at, "stability_low": at - 0.05, "stability_high": at + 0.05} for at in (0.9, 0.84, 0.1)
    )
    # Half-widths of 0.05 added in quadrature are 0.07.
    assert comparing._stabilities_agree(one, near, 0.95)
    assert not comparing._stabilities_agree(one, far, 0.95)


@pytest.mark.parametrize("judge", ["exact", "none"])
def test_what_has_no_interval_agrees_only_where_it_is_equal(tmp_path, judge):
    # One prompt, or only accuracies; no pairs, so that S has no interval.
    def run(name: str, won: float, stability: float) -> results.Run:
        measured = {} if judge == "exact" else {"win_rate": None, "preference_accuracy": won}
        about = {"label": "a", "judge": judge, "stability": stability, **measured}
        add_trial(tmp_path / name, "arm-a-s0", won=[won], **about)
        return results.load(finish(tmp_path / name, {"judge": judge}))

    one = run("one", 1.0, 0.9)
    assert verify(one, run("same", 1.0, 0.9)).agree
    assert not verify(one, run("lost", 0.0, 0.9)).agree
    assert not verify(one, run("collapsed", 1.0, 0.1)).agree


def test_accuracies_of_runs_without_a_judge_are_compared_pair_by_pair(tmp_path):
    def run(name: str, right: int) -> results.Run:
        add_trial(tmp_path / name, "arm-a-s0", label="a", judge="none", won=[1.0] * 24, win_rate=None, pairs=40)
        loaded = results.load(finish(tmp_path / name, {"judge": "none"}))
        loaded.pairs.loc[loaded.pairs["pair"] >= right, "chosen_logp"] = -9.0
        return loaded

    (row,) = verify(run("one", 30), run("other", 20)).table.frame.to_dict("records")
    d = np.repeat([0.0, 1.0, 0.0], [20, 10, 10])
    half = stats.t.ppf(0.975, 39) * np.sqrt(d.var() / 40 + 1 / 40**2)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.25 - half, 0.25 + half))
    assert row["remark"] == "the held-out accuracy differs"


def test_a_row_that_one_run_lacks_does_not_agree(tmp_path):
    one = run_of(tmp_path / "one", {"a": 0.5, "b": 0.5})
    other = run_of(tmp_path / "other", {"a": 0.5})
    found = verify(results.load(one), results.load(other))
    assert found.table.frame.set_index("label").loc["b", "remark"] == "in one run alone"
    assert not found.agree


def test_other_prompts_or_another_baseline_are_said_and_do_not_agree(tmp_path):
    one = run_of(tmp_path / "one", {"a": 0.5}, hashes={"prompts_report": "p1", "sft_checkpoint": "c"})
    other = run_of(tmp_path / "other", {"a": 0.5}, hashes={"prompts_report": "p2", "sft_checkpoint": "d"})
    found = verify(results.load(one), results.load(other))
    assert found.not_comparable == (
        "baseline: one has the SFT checkpoint c, other has the SFT checkpoint d",
        "report prompts: one has p1, other has p2",
    )
    assert not found.agree
    assert found.table.columns[-1].cells == ("–",)
    table = compare([results.load(one), results.load(other)])
    assert "Not the same in all runs: report prompts: one has p1, other has p2." in table.caption


def test_another_sft_checkpoint_from_the_same_is_named_and_changed_code_of_the_users_too(tmp_path):
    def run(name: str, **manifest) -> results.Run:
        return results.load(run_of(tmp_path / name, {"a": 0.5}, **manifest))

    one = run("one", hashes={"sft_checkpoint": "c", "sft_weights": "v"}, code={"mine:Hinge": "x"})
    other = run("other", hashes={"sft_checkpoint": "c", "sft_weights": "w"}, code={"mine:Hinge": "y"})
    found = verify(one, other)
    assert found.agree
    assert "Their SFT checkpoints have other weights" in found.text()
    assert [item.path for item in found.differences] == ["code.mine:Hinge", "hashes.sft_weights"]
    # A run of an earlier version does not know its own.
    assert "have other weights" not in verify(one, run("earlier", hashes={"sft_checkpoint": "c"})).text()


def test_differences_are_the_settings_data_and_versions_and_not_when_it_ran():
    one = {
        "created": "1", "name": "x", "seeds": [0, 1], "hashes": {"held_out": "a"}, "versions": {"torch": "2"},
        "experiment": {"name": "x", "base": {"training": {"learning_rate": 1e-4}}, "arms": [{"label": "full", "set": {}}]},
    }  # fmt: skip
    other = {
        "created": "2", "name": "y", "seeds": [0], "hashes": {"held_out": "b"}, "versions": {"torch": "2"},
        "experiment": {"name": "y", "base": {"training": {"learning_rate": 3e-4}}, "design": None,
                       "arms": [{"label": "full", "set": {"objective.beta": 1}}]},
    }  # fmt: skip
    found = [(item.kind, item.path, item.one, item.other) for item in differences(one, other)]
    assert found == [
        ("settings", "experiment.arms.full.set.objective.beta", "absent", "1"),
        ("settings", "experiment.base.training.learning_rate", "0.0001", "0.0003"),
        ("settings", "seeds", "[0, 1]", "[0]"),
        ("data", "hashes.held_out", "a", "b"),
    ]


def test_compare_has_every_row_of_every_run_by_win_rate(tmp_path):
    one = run_of(tmp_path / "one", {"a": 0.25, "b": 0.75})
    other = run_of(tmp_path / "other", {"a": 0.5})
    frame = compare([results.load(one), results.load(other)]).frame
    assert frame[["run", "label"]].values.tolist() == [["one", "b"], ["other", "a"], ["one", "a"]]


def test_a_remark_names_the_run_and_the_row_that_it_is_of(tmp_path):
    runs = [results.load(run_of(tmp_path / name, {"a": 0.25, "b": 1.0})) for name in ("one", "other")]
    runs[1].trials.loc[1, ["status", "reason"]] = ["failed", "no memory"]
    assert "other, a: failed 1 of 2: no memory" in compare(runs).text().splitlines()


def test_runs_of_two_judges_are_refused(tmp_path):
    one = run_of(tmp_path / "one", {"a": 0.5})
    add_trial(tmp_path / "other", "arm-a-s0", label="a", won=[1.0] * PROMPTS, judge="llm:x")
    other = finish(tmp_path / "other", {"judge": "llm:x"})
    runs = [results.load(one), results.load(other)]
    with pytest.raises(InputError, match=r"judged by 2 judges .*one by exact.*other by llm:x"):
        compare(runs)
    assert why_not_comparable(runs) == ["judge: one has exact, other has llm:x"]


@pytest.mark.parametrize("count", [1, 2])
def test_one_run_alone_is_nothing_to_compare(one_trial_run, count):
    with pytest.raises(InputError, match="at least two different runs"):
        compare([results.load(one_trial_run)] * count)


def test_the_commands_print_and_answer_with_their_exit_code(tmp_path, capsys):
    one = run_of(tmp_path / "one", {"a": 0.25})
    other = run_of(tmp_path / "other", {"a": 0.75})
    assert cli.main(["compare", str(one), str(other), "--csv", str(tmp_path / "both.csv")]) == 0
    assert (tmp_path / "both.csv").read_text().startswith("run,label,")
    capsys.readouterr()
    assert cli.main(["verify", str(one), str(other), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rows"][0]["label"] == "a"
    assert cli.main(["verify", str(one), str(tmp_path / "missing")]) == 2
