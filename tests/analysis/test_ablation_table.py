"""What the tables of an ablation say, on runs made by hand."""

import numpy as np
import pytest
from slime_ray.analysis import effects, printing, tables
from slime_ray.analysis.ablation import Cells, beside_the_paper, paper_tables, sentences
from slime_ray.analysis.ablation import ablation as ablation_of
from slime_ray.analysis.factorial import factorial_effects
from slime_ray.analysis.factorial import sentences as effect_sentences

from slime_ray.config.design import COMPONENTS, Design
from slime_ray.errors import InputError

from .designs import cell, factorial, knobs, leave_one_out, outcomes, run_of
from .ends import score_ends

PROMPTS = 200


def tables_of(run, design):
    """Ablation, factorial and the paper's."""
    found = Cells.of(run, design)
    ablation = ablation_of(found, tables.win_rate_stability(run))
    return ablation, factorial_effects(found), beside_the_paper(found, ablation)


def played(design, lacks, *, seeds=6, prompts=PROMPTS, spread=0.0):
    """Outcomes in which each missing component costs a share of the wins; the other prompts are the same in all cells.

    lacks: share by component, of prompts of its own. spread: of what seeds add or take, as a share.
    """
    rng = np.random.default_rng(0)
    base = (rng.random((seeds, prompts)) < 0.8).astype(float)
    won = {}
    for one in design.cells:
        values = base.copy()
        for place, (component, share) in enumerate(lacks.items()):
            if one.levels.get(component) is False:
                own = slice(place, None, len(lacks))
                values[:, own] = np.where(rng.random(values[:, own].shape) < share, 0.0, values[:, own])
        flips = rng.random(values.shape) < spread
        won[one.label] = np.where(flips, outcomes(rng, 0.5, seeds=seeds, prompts=prompts), values)
    return won


@pytest.fixture(scope="session")
def loo():
    """Without the anchor nearly all wins of a quarter of the prompts are lost, without anything else none."""
    design = leave_one_out()
    lacks = dict.fromkeys(COMPONENTS, 0.0) | {"anchor": 0.9}
    stability = {"full": [0.8, 0.7, 0.8, 0.9, 0.8, 0.8], "without-anchor": [0.3, 0.2, 0.4, 0.3, 0.3, 0.3]}
    activity = {"past_hard_margin": 0.25, "gradient_share.anchor": 0.1, "gradient_share.margin": 0.9}
    run = run_of(design, played(design, lacks, spread=0.1), stability=stability, activity=activity)
    return run, design, tables_of(run, design)


def row(table, label, name="label"):
    return table.frame.set_index(name).loc[label]


def heads(table):
    return [column.head for column in table.columns]


def cells_of(table, head):
    return next(column.cells for column in table.columns if column.head == head)


def test_the_reference_stands_first_and_each_difference_is_that_of_the_rates(loo):
    _, _, (table, _, _) = loo
    assert table.frame["variant"].tolist()[0] == "full"
    assert table.frame["verdict"][0] == "compared with"
    full, less = row(table, "full"), row(table, "without-anchor")
    assert less["difference"] == pytest.approx(less["win_rate"] - full["win_rate"])
    assert less["difference_low"] < less["difference"] < less["difference_high"] < 0
    assert less["improvement"] < 0.5
    assert np.isnan(full["difference"])


def test_what_matters_is_said_to_and_nothing_else(loo):
    run, design, (table, _, _) = loo
    verdicts = table.frame.set_index("variant")["verdict"]
    assert verdicts["without-anchor"] == "matters"
    assert (
        verdicts[["without-stabilizer", "without-soft-margin", "without-hard-margin"]]
        .str.startswith("not settled: ")
        .all()
    )
    assert row(table, "without-anchor")["p"] == max(
        row(table, "without-anchor")[f"p_{test}"] for test in ("seeds", "prompts", "both")
    )
    # The smallest p-value is multiplied by four: the reference is compared with nothing.
    d = Cells.of(run, design).difference(design.cells[1], "win_rate")
    assert row(table, design.cells[1].label)["p_prompts"] == pytest.approx(
        4 * effects.claims({"it": d})["it"].p_values["prompts"]
    )
    assert "over all 4 comparisons" in " ".join(table.notes)


def test_stability_is_compared_by_seed(loo):
    _, _, (table, _, _) = loo
    less = row(table, "without-anchor")
    # Means 0.3 and 0.8; the seeds' differences are -0.5, -0.5, -0.4, -0.6, -0.5, -0.5.
    assert less["stability_difference"] == pytest.approx(-0.5)
    half = 2.5706 * np.std([-0.5, -0.5, -0.4, -0.6, -0.5, -0.5], ddof=1) / np.sqrt(6)
    assert less["stability_difference_high"] == pytest.approx(-0.5 + half, rel=1e-4)


def test_activity_is_that_of_the_last_step_and_absent_where_it_was_not_recorded(loo):
    _, design, (table, _, _) = loo
    assert set(cells_of(table, "past m_h %")) == {"25"}
    assert set(cells_of(table, "anchor grad. %")) == {"10"}
    assert "stabilizer grad. %" not in heads(table)
    older, _, _ = tables_of(run_of(design, played(design, {})), design)
    assert set(cells_of(older, "past m_h %")) == {"–"}
    assert [head for head in heads(older) if "grad." in head] == [
        "anchor grad. %",
        "stabilizer grad. %",
        "margin grad. %",
    ]


def test_the_best_of_a_center_is_bold_with_all_that_is_not_separable_from_it():
    design = leave_one_out(("paper", "released"))
    won = played(design, {"anchor": 1.0, "stabilizer": 0.0})
    # Around the released center everything is lost, so that its best is far below the other's.
    won |= {label: values * (0.5 if label.startswith("released") else 1.0) for label, values in won.items()}
    table, _, paper = tables_of(run_of(design, won), design)
    marks = table.frame.set_index("label")["mark"]
    for center in ("paper", "released"):
        assert marks[f"{center}-full"] == marks[f"{center}-without-hard-margin"] == "best"
        assert marks[f"{center}-without-anchor"] == "second"
    assert heads(table)[:2] == ["variant", "around"]
    assert "over all 8 comparisons" in " ".join(table.notes)
    assert "ours, released: difference" in heads(paper)


def test_a_design_about_stability_is_tested_on_the_seeds_alone(loo):
    _, _, (by_rate, _, _) = loo
    design = leave_one_out(metric="stability")
    stability = {"full": [0.8, 0.7, 0.8, 0.9, 0.8, 0.8], "without-anchor": [0.3, 0.2, 0.4, 0.3, 0.3, 0.3]}
    table, _, _ = tables_of(run_of(design, played(design, {}), stability=stability), design)
    less = row(table, "without-anchor")
    assert less["verdict"] == "matters"
    assert np.isnan(less["p_prompts"])
    assert heads(table).index("corrected p") == heads(table).index("S difference") + 1
    assert heads(by_rate).index("corrected p") == heads(by_rate).index("difference") + 1
    assert "sign flips" not in " ".join(table.notes)


def test_accuracies_have_the_intervals_that_their_column_is_headed_by():
    design = leave_one_out(metric="preference_accuracy")
    wins = outcomes(np.random.default_rng(0), 0.7, seeds=3)
    table, *_ = tables_of(run_of(design, {cell.label: wins for cell in design.cells}), design)
    assert "held-out accuracy % [95 %]" in heads(table)
    rate, means = wins.mean(), wins.mean(axis=0)
    items = len(means)
    effective = items * (rate * (1 - rate) * items + 0.25) / (means.var() * items + 0.25)
    found = row(table, "full")
    ends = found["preference_accuracy_low"], found["preference_accuracy_high"]
    assert ends == pytest.approx(score_ends(rate, effective, items - 1))


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 seed per row cannot say"), (4, "4 seeds per row cannot say")])
def test_few_seeds_carry_a_warning_and_no_significance(seeds, words):
    design = factorial(("anchor", "stabilizer"))
    made = tables_of(run_of(design, played(design, {"anchor": 1.0}, seeds=seeds)), design)
    for table in made:
        assert any(note.startswith("These checkpoints only") and words in note for note in table.notes)
    ablation, effects_table, _ = made
    assert set(ablation.frame["verdict"]) == {"compared with", "these checkpoints only"}
    assert ablation.frame[["p", "d_z"]].isna().all(axis=None)
    assert set(effects_table.frame["verdict"]) == {"these checkpoints only", ""}
    assert row(effects_table, "anchor", "effect_of")["effect_high"] > 0


def test_without_its_reference_a_center_has_no_differences_and_says_why():
    design = leave_one_out()
    run = run_of(design, played(design, {}), lost={("full", seed): "failed" for seed in range(6)})
    table, _, paper = tables_of(run, design)
    assert set(table.frame["verdict"][1:]) == {"not measured"}
    assert table.frame["difference"].isna().all()
    assert any("full seeds 0, 1, 2, 3, 4, 5 (failed: loss became nan)" in note for note in table.notes)
    assert set(cells_of(paper, "ours: difference")) == {"–"}


def test_a_cell_that_lost_a_seed_is_compared_on_the_others_and_says_so():
    design = leave_one_out()
    run = run_of(design, played(design, {"anchor": 1.0}), lost={("without-anchor", 2): "diverged"})
    table, _, _ = tables_of(run, design)
    less = row(table, "without-anchor")
    assert (less["compared_seeds"], less["seeds"]) == (5, 5)
    assert "compared on 5 of 6 seeds" in less["note"]
    assert any("without-anchor seed 2 (diverged: loss became nan)" in note for note in table.notes)


def test_main_effects_shapley_values_and_the_total_add_up_in_the_table():
    design = factorial()
    lacks = dict(zip(COMPONENTS, (0.5, 0.3, 0.0, 0.1), strict=True))
    run = run_of(design, played(design, lacks))
    ablation, table, paper = tables_of(run, design)
    frame = table.frame.set_index("effect_of")
    assert len(frame) == 16
    full, none = (
        row(ablation, "full")["win_rate"],
        row(ablation, "without-anchor-stabilizer-soft-margin-hard-margin")["win_rate"],
    )
    assert frame.loc["all components", "effect"] == pytest.approx(full - none)
    assert frame.loc[list(COMPONENTS), "shapley"].sum() == pytest.approx(full - none, abs=1e-9)
    assert frame.loc[list(COMPONENTS), "stability_shapley"].sum() == pytest.approx(
        frame.loc["all components", "stability_effect"], abs=1e-9
    )
    present = ablation.frame["label"].map(lambda label: "anchor" not in label)
    rates = ablation.frame["win_rate"]
    assert frame.loc["anchor", "effect"] == pytest.approx(rates[present].mean() - rates[~present].mean())
    assert frame.loc["anchor", "verdict"] == "matters"
    assert frame.loc["soft_margin", "verdict"].startswith("not settled")
    assert "over the 4 main effects" in " ".join(table.notes)
    assert any("no margin at all" in note for note in table.notes)
    assert any("Without any component nothing is trained" in note for note in table.notes)
    assert row(paper, "without anchor", "row")["base difference"] == row(ablation, "without-anchor")["difference"]


def test_controls_are_compared_and_never_summed():
    plain = factorial(("anchor", "stabilizer"))
    control = cell("matched", reference="full", levels={"anchor": False, "stabilizer": True}, control=True)
    design = Design(kind="factorial", cells=[*plain.cells, control])
    won = played(design, {"anchor": 0.5})
    won["matched"] = np.ones_like(won["full"])
    ablation, table, _ = tables_of(run_of(design, won), design)
    _, without, _ = tables_of(run_of(plain, {label: won[label] for label in won if label != "matched"}), plain)
    assert table.frame["effect"].tolist() == without.frame["effect"].tolist()
    assert row(ablation, "matched")["difference"] > 0
    assert row(ablation, "matched")["note"] == "control"
    assert "over all 4 comparisons" in " ".join(ablation.notes)


def test_a_design_of_which_a_cell_is_missing_is_not_summed():
    design = factorial(("anchor", "stabilizer"))
    won = played(design, {"anchor": 0.5})
    _, table, _ = tables_of(
        run_of(design, {label: won[label] for label in won if label != "without-stabilizer"}), design
    )
    assert table.frame["effect"].isna().all()
    assert table.frame["stability_effect"].isna().all()
    assert set(table.frame["verdict"]) == {"not measured", ""}
    assert any("without-stabilizer seeds 0, 1, 2, 3, 4, 5 (not measured)" in note for note in table.notes)
    # Of a seed that one cell lost, the others are left out as well, and stability counts it as 0.
    _, table, _ = tables_of(run_of(design, won, lost={("without-stabilizer", 0): "failed"}), design)
    assert set(table.frame["seeds"]) == {5}
    assert table.frame["effect"].notna().all()


def test_a_factorial_design_with_one_place_taken_twice_is_refused():
    plain = factorial(("anchor", "stabilizer"))
    design = Design(
        kind="factorial",
        cells=[*plain.cells, cell("again", reference="full", levels={"anchor": False, "stabilizer": True})],
    )
    with pytest.raises(
        InputError, match=r"again and without-anchor have the same components.*Make one of them a control"
    ):
        tables_of(run_of(design, played(design, {})), design)


def test_a_metric_that_was_not_measured_is_not_tested():
    design = leave_one_out()
    table, _, _ = tables_of(run_of(design, played(design, {"anchor": 1.0}), judged=False), design)
    assert set(table.frame["verdict"][1:]) == {"not tested: no win rate"}
    assert "held-out accuracy % [95 %]" in heads(table)
    assert any("was not measured: nothing is tested" in note for note in table.notes)


def test_the_papers_tables_are_as_printed():
    by_design = {design: table["models"] for design, table in paper_tables().items()}
    methods, gemma = by_design["baselines"], by_design["baselines"]["Gemma3-4B"]
    assert gemma["slime"] == [6.15, 13.1, 1.5, 1.2]
    assert by_design["factorial"] == by_design["leave_one_out"]
    parts, exponents = (by_design[name]["Gemma3-4B"].values() for name in ("leave_one_out", "exponent"))
    assert [arena_hard for _, arena_hard, *_ in parts] == [13.1, 11.1, 12.1, 11.2, 12.4]
    assert [mt_bench for mt_bench, *_ in exponents] == [5.70, 5.86, 5.76, 6.15, 5.66]
    assert sum(map(len, methods.values())) == 15


def test_theirs_and_ours_are_told_apart(loo):
    _, _, (ablation, _, paper) = loo
    assert paper.frame["row"].tolist() == [
        "full",
        "without anchor",
        "without stabilizer",
        "without soft margin",
        "without hard margin",
    ]
    assert cells_of(paper, "theirs: AH [as printed, most likely 90 %]")[1] == "11.1 [9.9, 12.2]"
    assert cells_of(paper, "theirs: AH difference")[1] == "-2.0"
    assert cells_of(paper, "ours: difference") == cells_of(ablation, "difference")
    for words in ("Table 4", "2602.02383", "Gemma3-4B", "not one measure", "single votes"):
        assert words in paper.caption + " ".join(paper.notes)


@pytest.mark.parametrize("objective", ["slime", "composed"])
def test_parts_of_another_objective_are_not_set_beside_those_of_slime(objective):
    design = factorial(("anchor", "stabilizer"))
    run = run_of(design, played(design, {"anchor": 0.5}))
    run.trials["objective"] = objective
    _, effects, paper = tables_of(run, design)
    assert len(paper.frame) == (5 if objective == "slime" else 0)
    assert not any("nothing is trained" in note for note in effects.notes)


def test_exponents_and_methods_find_their_rows_in_the_paper():
    path = "objective.stabilizer_exponent"
    design = knobs("exponent", {path: 2.5}, {path: 1.0}, {path: 3.0})
    rng = np.random.default_rng(0)
    won = {one.label: outcomes(rng, 0.5, prompts=30) for one in design.cells}
    _, _, paper = tables_of(run_of(design, won), design)
    assert paper.frame["row"].tolist() == ["p = 1.0", "p = 1.5", "p = 2.0", "p = 2.5", "p = 3.0"]
    assert [value != "–" for value in cells_of(paper, "ours: win rate [95 %]")] == [True, False, False, True, True]
    assert cells_of(paper, "ours: verdict")[1] == "not measured"
    # Version 2 of the paper, Table 5: -1.2/+1.1, -1.3/+1.5, -1.1/+1.1, -1.1/+1.0, -1.4/+1.2.
    printed = ("12.2 [11.0, 13.3]", "12.2 [10.9, 13.7]", "11.2 [10.1, 12.3]", "13.1 [12.0, 14.1]", "12.7 [11.3, 13.9]")
    assert cells_of(paper, "theirs: AH [as printed, most likely 90 %]") == printed
    methods = Design(
        kind="baselines", cells=[cell(name, reference="slime") for name in ("slime", "sft", "dpo", "simpo")]
    )
    won = {one.label: outcomes(rng, 0.5, prompts=30) for one in methods.cells}
    ablation, _, paper = tables_of(run_of(methods, won), methods)
    assert paper.frame["row"].tolist() == ["base", "sft", "dpo", "simpo", "slime"]
    assert row(paper, "dpo", "row")["base difference"] == row(ablation, "dpo")["difference"]
    assert row(paper, "sft", "row")["Qwen3-4B difference"] == pytest.approx(32.1 - 39.8)


def test_a_design_that_the_paper_lacks_has_no_table_beside_it():
    design = knobs("sensitivity", {"objective.hard_margin": 1.5}, {"objective.hard_margin": 3.0})
    run = run_of(design, {one.label: outcomes(np.random.default_rng(0), 0.5) for one in design.cells})
    _, effects_table, paper = tables_of(run, design)
    assert effects_table.frame.empty
    assert paper.frame.empty


def test_the_sentences_say_what_the_tables_say(loo):
    run, design, (ablation, _, _) = loo
    open_, said = sentences(Cells.of(run, design), ablation)
    less = row(ablation, "without-anchor")
    assert said == [
        f"without-anchor differs from its reference: {100 * less['difference']:+.1f} points "
        f"[{100 * less['difference_low']:+.1f}, {100 * less['difference_high']:+.1f}], corrected p {printing.p_words(less['p'])} "
        f"({less['tested_seeds']} seeds, {less['tested_items']} prompts, judge exact)."
    ]
    assert len(open_) == 3
    assert all(sentence.startswith("Whether without-") for sentence in open_)
    assert all(" prompts, judge exact); about " in sentence for sentence in open_)


def test_the_sentences_on_main_effects_say_what_they_rest_on():
    design = factorial()
    run = run_of(design, played(design, {"anchor": 0.5}))
    cells = Cells.of(run, design)
    open_, said = effect_sentences(cells, factorial_effects(cells))
    assert len(open_) + len(said) == 4
    seeds, prompts = next(iter(cells.rates.values()))[1].shape
    assert all(f"({seeds} seeds, {prompts} prompts, judge exact)" in sentence for sentence in [*open_, *said])
