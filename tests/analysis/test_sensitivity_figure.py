"""The figure of knobs: each value once, the center marked, intervals as in the table."""

import numpy as np
import pytest
from slime_ray.analysis import ablation_table, figures, knob_figures, tables
from slime_ray.analysis.ablation_table import Cells

from slime_ray.config.design import Design

from .designs import cell, knobs, outcomes, run_of

MARGIN, ANCHOR = "objective.hard_margin", "objective.anchor_weight"


def drawn(design, rates):
    """The figure and the table of a design with these win rates by label."""
    rng = np.random.default_rng(0)
    run = run_of(design, {label: outcomes(rng, rate, prompts=150) for label, rate in rates.items()})
    found = Cells.of(run, design)
    table = ablation_table.ablation(found, tables.win_rate_stability(run))
    return knob_figures.sensitivity(found, table), table


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
    assert figures.render(figure)["svg"].startswith(b"<?xml")


def test_a_cell_without_results_leaves_a_gap():
    design = knobs("exponent", {"p": 2.5}, {"p": 1.0}, {"p": "off"})
    figure, _ = drawn(design, {"center": 0.5, "p-off": 0.5})
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["1.0", "2.5", "off"]
    (line,) = lines(figure.axes[0])
    assert line.get_xdata() == pytest.approx([1.0, 2.0])
