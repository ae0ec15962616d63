"""Every kind of search and of design that varies knobs has its figures, or none where there is nothing to see."""

from dataclasses import replace

import numpy as np
import pytest
from slime_ray.analysis import ablation, figures, report, tables
from slime_ray.analysis.ablation import Cells
from slime_ray.analysis.figures import WIDTH, style
from slime_ray.analysis.knobs import Searched, slices
from slime_ray.analysis.printing import Table
from slime_ray.analysis.report import Findings

from slime_ray.config.design import Design
from slime_ray.runs import results

from .designs import cell, knobs, outcomes, run_of
from .searches import points_run, search_run


def only(run, *paths):
    """The search with these knobs alone."""
    kept = [results.KNOB + path for path in paths]
    dropped = [name for name in run.trials if name.startswith(results.KNOB) and name not in kept]
    return results.Run(run.path, run.trials.drop(columns=dropped), run.answers, run.curves, run.pairs, run.manifest)


def with_goals(run, **goals):
    run.manifest["goals"] = goals
    run.trials["mean_margin"] = 2 * run.trials["win_rate"]
    return run


SEARCHES = {
    "two goals": lambda: search_run(30, prompts=16),
    "one goal": lambda: with_goals(search_run(12), win_rate="maximize"),
    "no reference": lambda: with_goals(search_run(12), mean_margin="maximize", stability="minimize"),
    "three goals": lambda: with_goals(
        search_run(12), win_rate="maximize", stability="maximize", mean_margin="maximize"
    ),
    "one trial": lambda: search_run(1, prompts=4),
    "choices": lambda: only(search_run(20), "training.schedule", "training.pairs_per_update"),
    "one knob": lambda: only(search_run(20), "objective.hard_margin"),
    "all equal": lambda: points_run([(0.5, 0.5)] * 8),
    "nothing completed": lambda: points_run([(np.nan, 0.0)] * 3, status=["failed", "diverged", "stopped"]),
    "one completed": lambda: points_run([(0.5, 0.5), (np.nan, 0.0)], status=["completed", "failed"]),
}


def made(found):
    """What the report has below the heading of the search: tables and figures, by name."""
    things = [(entry, entry.make(found)) for entry in report.SECTIONS if entry.under == report.SEARCH]
    tables = {entry.name: thing for entry, thing in things if isinstance(thing, Table) and len(thing.frame)}
    return tables, {entry.name: thing for entry, thing in things if thing is not None and not isinstance(thing, Table)}


@pytest.mark.parametrize("kind", SEARCHES)
def test_every_kind_of_search_has_figures_tables_and_sentences(kind):
    found = Findings(SEARCHES[kind]())
    tables, figures = made(found)
    for figure in figures.values():
        with style():
            figure.draw_without_rendering()
        assert figure.get_figwidth() <= WIDTH
    for table in tables.values():
        assert table.markdown()
        assert table.latex()
    assert all(sentence.endswith(".") for sentence in found.on_search())


def test_a_search_of_two_goals_has_all_of_them():
    found = Findings(search_run(100))
    tables, figures = made(found)
    assert set(figures) == {"search_slices", "search_budget"}
    assert set(tables) == {"search_trials", "search_front", "search_importance", "search_budget"}
    said = found.on_search()
    assert any("is the most important knob" in sentence for sentence in said)
    assert any(sentence.startswith("The knee of the search's front is") for sentence in said)


def test_a_run_without_a_search_has_nothing_to_understand():
    run = search_run(3)
    run.trials["phase"] = "arm"
    found = Findings(run)
    tables, figures = made(found)
    assert not any(name.startswith("search") for name in (*tables, *figures))
    assert found.on_search() == []


def test_slices_show_each_completed_trial_in_each_panel_and_ring_the_front():
    run = points_run([(0.2, 0.9), (0.5, 0.8), (0.8, 0.1), (0.4, 0.1)], status=["completed"] * 3 + ["stopped"])
    searched = Searched.of(run)
    figure = slices(searched, [0, 1])
    assert len(figure.axes) == 4
    dots, rings = figure.axes[0].collections[0], figure.axes[0].lines[0]
    assert np.asarray(dots.get_offsets())[:, 1] == pytest.approx([20, 50, 80])
    assert np.asarray(rings.get_ydata()) == pytest.approx([20, 50, 80])


def test_a_logarithmic_knob_has_a_few_ticks_that_say_their_values():
    """Of less than a decade, too, where a locator of decades alone finds none."""
    searched = Searched.of(search_run(12))
    for low, high, shown in (
        # Versions of matplotlib before 3.11.2 begin their count of decades one higher.
        (1e-4, 0.3, [{"0.0001", "0.1"}, {"0.001", "0.1"}]),
        (0.1, 2.0, [{"0.1", "0.2", "0.5", "1", "2"}]),
        (2, 9, [{"2", "5"}]),
    ):
        knob = replace(searched.knobs[0], scale="log", low=low, high=high)
        figure = slices(replace(searched, knobs=(knob, *searched.knobs[1:])), [0])
        figure.draw_without_rendering()
        axis = figure.axes[-1].xaxis
        inside = {tick.get_text() for tick in axis.get_ticklabels() if 0.999 * low <= tick.get_position()[0] <= high}
        assert inside in shown
        assert not axis.get_minorticklocs().size


def test_the_knobs_are_those_that_matter_most_first():
    _, figures = made(Findings(search_run(100)))
    names = [axes.get_xlabel() for axes in figures["search_slices"].axes if axes.get_xlabel()]
    assert set(names[:2]) == {"hard_margin", "anchor_weight"}


@pytest.mark.parametrize(("kind", "named"), [("two goals", [False, False, True, False]), ("one goal", [True])])
def test_lines_that_several_panels_of_a_budget_have_are_named_in_the_first(kind, named):
    _, figures = made(Findings(SEARCHES[kind]()))
    panels = [axes for axes in figures["search_budget"].axes if axes.axison]
    assert [axes.get_legend() is not None for axes in panels] == named
    lines = {line.get_label() for axes in panels for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert lines == {text.get_text() for axes in panels if axes.get_legend() for text in axes.get_legend().texts}


def test_the_expected_best_has_a_band_only_as_far_as_its_table_has_an_interval():
    _, figures = made(Findings(search_run(20)))
    panel = figures["search_budget"].axes[2]
    assert panel.collections[0].get_paths()[0].vertices[:, 0].max() == 4
    assert panel.lines[0].get_xdata().max() == 20


MARGIN, ANCHOR = "objective.hard_margin", "objective.anchor_weight"


def drawn(design, rates):
    """The figure and the table of a design with these win rates by label."""
    rng = np.random.default_rng(0)
    run = run_of(design, {label: outcomes(rng, rate, prompts=150) for label, rate in rates.items()})
    found = Cells.of(run, design)
    table = ablation.ablation(found, tables.win_rate_stability(run))
    return figures.sensitivity(found.design, found.rate, table), table


@pytest.fixture(scope="module")
def two_knobs():
    design = knobs("sensitivity", {MARGIN: 1.5, ANCHOR: 0.1}, {MARGIN: 3.0}, {MARGIN: 0.5}, {ANCHOR: 0.0})
    return drawn(design, {"center": 0.6, "hard_margin-3.0": 0.6, "hard_margin-0.5": 0.3, "anchor_weight-0.0": 0.6})


def lines(axes):
    """The lines between points, without their bars."""
    return [line for line in axes.lines if not str(line.get_label()).startswith("_")]


def test_any_number_of_knobs_fits_on_a_page_with_the_values_turned():
    paths = [f"objective.{name}" for name in ("anchor_weight", "stabilizer_strength", "hard_margin", "soft_margin")]
    design = knobs("sensitivity", dict.fromkeys(paths, 0.1), *({path: 1.0} for path in paths))
    figure, _ = drawn(design, {one.label: 0.5 for one in design.cells})
    assert figure.get_figwidth() == figures.WIDTH
    assert {text.get_rotation() for axes in figure.axes[4:] for text in axes.get_xticklabels()} == {45}


def test_each_knob_has_a_column_with_its_values_in_order_and_the_center_in_all(two_knobs):
    figure, table = two_knobs
    upper, lower = figure.axes[:2], figure.axes[2:]
    assert [axes.get_xlabel() for axes in lower] == ["hard_margin", "anchor_weight"]
    assert [text.get_text() for text in lower[0].get_xticklabels()] == ["0.5", "1.5", "3.0"]
    assert [text.get_text() for text in lower[1].get_xticklabels()] == ["0.0", "0.1"]
    rates = table.frame.set_index("label")["win_rate"]
    (line,) = lines(upper[0])
    assert line.get_ydata() == pytest.approx(100 * rates[["hard_margin-0.5", "center", "hard_margin-3.0"]])
    (line,) = lines(lower[1])
    assert line.get_ydata() == pytest.approx([0.5, 0.5])


def test_the_center_is_a_diamond_and_only_what_is_separable_from_it_is_filled(two_knobs):
    figure, _ = two_knobs
    points = [container.lines[0] for container in figure.axes[0].containers]
    assert [point.get_marker() for point in points] == ["o", "D", "o"]
    assert [point.get_markerfacecolor() == "white" for point in points] == [False, False, True]


def test_bars_are_the_intervals_of_the_table(two_knobs):
    figure, table = two_knobs
    own = table.frame.set_index("label").loc["hard_margin-0.5"]
    (bar,) = figure.axes[0].containers[0].lines[2]
    ends = bar.get_segments()[0][:, 1]
    assert ends == pytest.approx([100 * own["win_rate_low"], 100 * own["win_rate_high"]])


def test_centers_have_lines_of_their_own_and_controls_none():
    path = "objective.stabilizer_exponent"
    cells = []
    for center in ("paper", "released"):
        about = {"center": center, "reference": f"{center}-p2.5"}
        cells += [
            cell(f"{center}-p2.5", levels={path: 2.5}, **about),
            cell(f"{center}-p1", levels={path: 1.0}, **about),
            cell(f"{center}-p1-matched", levels={path: 1.0}, control=True, **about),
        ]
    figure, _ = drawn(Design(kind="exponent", cells=cells), {one.label: 0.5 for one in cells})
    assert [line.get_label() for line in lines(figure.axes[0])] == ["paper", "released"]
    assert [len(line.get_xdata()) for line in lines(figure.axes[0])] == [2, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["paper", "released"]
    assert figures.render(figure, "svg")["svg"].startswith(b"<?xml")


def test_a_cell_without_results_leaves_a_gap():
    design = knobs("exponent", {"p": 2.5}, {"p": 1.0}, {"p": "off"})
    figure, _ = drawn(design, {"center": 0.5, "p-off": 0.5})
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["1.0", "2.5", "off"]
    (line,) = lines(figure.axes[0])
    assert line.get_xdata() == pytest.approx([1.0, 2.0])
