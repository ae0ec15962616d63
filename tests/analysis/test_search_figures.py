"""Every kind of search has its figures, or a sentence in their place."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from slime_ray.analysis import knob_figures, sections
from slime_ray.analysis.figures import WIDTH, render, style
from slime_ray.analysis.knobs import Searched
from slime_ray.analysis.printing import Table
from slime_ray.analysis.sections import Findings

from slime_ray.runs import results

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
    things = [(entry, entry.make(found)) for entry in sections.SECTIONS if entry.under == sections.SEARCH]
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
    assert all(sentence.endswith(".") for sentence in found.search.sentences())


def test_a_search_of_two_goals_has_all_of_them():
    found = Findings(search_run(100))
    tables, figures = made(found)
    assert set(figures) == {"search_importance", "search_slices", "search_budget"}
    assert set(tables) == {"search_trials", "search_front", "search_importance", "search_budget"}
    said = found.search.sentences()
    assert any("is the most important knob" in sentence for sentence in said)
    assert any(sentence.startswith("The knee of the search's front is") for sentence in said)


def test_a_run_without_a_search_has_nothing_to_understand():
    run = search_run(3)
    run.trials["phase"] = "arm"
    search = Findings(run).search
    assert all(table.frame.empty for table in (search.front, search.importance, search.budget, search.winners))
    assert search.sentences() == []


def test_figures_repeat_bit_for_bit():
    searched = Searched.of(search_run(12))
    assert render(knob_figures.slices(searched, [0, 1])) == render(knob_figures.slices(searched, [0, 1]))


def test_slices_show_each_completed_trial_in_each_panel_and_ring_the_front():
    run = points_run([(0.2, 0.9), (0.5, 0.8), (0.8, 0.1), (0.4, 0.1)], status=["completed"] * 3 + ["stopped"])
    searched = Searched.of(run)
    figure = knob_figures.slices(searched, [0, 1])
    assert len(figure.axes) == 4
    dots, rings = figure.axes[0].collections[0], figure.axes[0].lines[0]
    assert np.asarray(dots.get_offsets())[:, 1] == pytest.approx([20, 50, 80])
    assert np.asarray(rings.get_ydata()) == pytest.approx([20, 50, 80])


def test_a_logarithmic_knob_has_a_few_ticks_that_say_their_values():
    """Of less than a decade, too, where a locator of decades alone finds none."""
    searched = Searched.of(search_run(12))
    for low, high, shown in (
        (1e-4, 0.3, {"0.0001", "0.1"}),
        (0.1, 2.0, {"0.1", "0.2", "0.5", "1", "2"}),
        (2, 9, {"2", "5"}),
    ):
        knob = replace(searched.knobs[0], scale="log", low=low, high=high)
        figure = knob_figures.slices(replace(searched, knobs=(knob, *searched.knobs[1:])), [0])
        figure.draw_without_rendering()
        axis = figure.axes[-1].xaxis
        inside = {tick.get_text() for tick in axis.get_ticklabels() if low <= tick.get_position()[0] <= high}
        assert inside == shown
        assert not axis.get_minorticklocs().size


def test_the_knobs_are_those_that_matter_most_first():
    understanding = Findings(search_run(100)).search
    names = [understanding.searched.knobs[column].name for column in understanding.by_importance()]
    assert set(names[:2]) == {"hard_margin", "anchor_weight"}
    assert isinstance(understanding.importance.frame, pd.DataFrame)


@pytest.mark.parametrize(("kind", "named"), [("two goals", [True, False, True, False]), ("one goal", [True])])
def test_lines_that_several_panels_of_a_budget_have_are_named_in_the_first(kind, named):
    _, figures = made(Findings(SEARCHES[kind]()))
    panels = [axes for axes in figures["search_budget"].axes if axes.axison]
    assert [axes.get_legend() is not None for axes in panels] == named
    lines = {line.get_label() for axes in panels for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert lines == {text.get_text() for axes in panels if axes.get_legend() for text in axes.get_legend().texts}
