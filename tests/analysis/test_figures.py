"""Figures draw every kind of run, and show what its numbers say."""

import io
import re
import zlib
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from slime_ray.analysis import figures, rows, tables, trial_tables

from slime_ray.runs import results

from .conftest import add_trial, finish


def pareto(run):
    return figures.pareto(run, tables.win_rate_stability(run))


def logprob_curves(run, main=None):
    return figures.logprob_curves(run, main or tables.win_rate_stability(run), trial_tables.search_trials(run))


FIGURES = [pareto, logprob_curves]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("kind", ["unjudged_run", "failed_run", "one_trial_run", "search_only_run"])
def test_every_kind_of_run_has_every_figure(draw, kind, request):
    """Laid out and drawn; what the forms of a file make of it is looked at once, below and in the reports."""
    figure = draw(results.load(request.getfixturevalue(kind)))
    figure.draw_without_rendering()
    assert figure.axes


def test_a_figure_has_three_forms(one_trial_run):
    figure = pareto(results.load(one_trial_run))
    files = figures.render(figure)
    image = Image.open(io.BytesIO(files["png"]))
    assert image.format == "PNG"
    assert image.size == tuple(round(figures.DPI * inches) for inches in figure.get_size_inches())
    assert image.info["dpi"] == pytest.approx((figures.DPI, figures.DPI), rel=1e-3)
    # White paper, black axes and a blue arm are all there.
    colours = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height)}
    assert {(255, 255, 255), (0, 0, 0), (0, 0x72, 0xB2)} <= colours
    assert files["pdf"].startswith(b"%PDF")
    assert b"<svg" in files["svg"]


def test_a_pdf_has_its_letters_as_truetype(one_trial_run):
    """Journals refuse Type 3 fonts."""
    streams = re.findall(
        rb"stream\r?\n(.*?)\r?\nendstream",
        figures.render(pareto(results.load(one_trial_run)), "pdf")["pdf"],
        re.DOTALL,
    )
    fonts = [TTFont(io.BytesIO(text)) for stream in streams if (text := unpacked(stream))[:4] == b"\x00\x01\x00\x00"]
    assert fonts
    assert all("glyf" in font for font in fonts)


def test_a_pdf_with_minus_signs_has_one_font(judged_run):
    pdf = figures.render(logprob_curves(results.load(judged_run)), "pdf")["pdf"]
    assert len(re.findall(rb"/FontFile2 \d+ 0 R", pdf)) == 1


def unpacked(stream):
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def test_the_names_of_axes_stay_in_the_middle(one_trial_run):
    (axes,) = (figure := pareto(results.load(one_trial_run))).axes
    figures.render(figure, "svg")
    assert axes.xaxis.label.get_position()[0] == axes.yaxis.label.get_position()[1] == 0.5


def test_drawing_leaves_the_users_style_alone_and_needs_no_pyplot(one_trial_run):
    before = dict(matplotlib.rcParams)
    figures.render(pareto(results.load(one_trial_run)), "svg")
    assert dict(matplotlib.rcParams) == before


def test_pareto_has_a_point_per_row_and_trial_and_says_which_prompts(judged_run):
    figure = pareto(results.load(judged_run))
    (axes,) = figure.axes
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "search trials (selection prompts, one seed)",
        "their front",
        "50 %: no change",
        "arms (report prompts)",
        "confirmed winner (report prompts)",
    ]
    hollow = next(line for line in axes.lines if str(line.get_label()).startswith("search trials"))
    assert len(hollow.get_xdata()) == 8
    frame = tables.win_rate_stability(results.load(judged_run)).frame.dropna(subset=["win_rate", "stability"])
    assert set(frame["phase"]) == {"arm", "confirm"}
    for phase, container in zip(("arm", "confirm"), axes.containers, strict=True):
        own = frame[frame["phase"] == phase]
        points, _, (level, upright) = container.lines
        assert points.get_xydata() == pytest.approx(own[["stability", "win_rate"]].to_numpy() * [1, 100])
        assert [line[:, 0].tolist() for line in level.get_segments()] == [
            pytest.approx(ends) for ends in own[["stability_min", "stability_max"]].to_numpy()
        ]
        assert [line[:, 1].tolist() for line in upright.get_segments()] == [
            pytest.approx(100 * ends) for ends in own[["win_rate_low", "win_rate_high"]].to_numpy()
        ]
    assert "search-0004" in texts(figure)


def test_the_front_runs_down_the_unbeaten_trials(judged_run):
    (axes,) = pareto(results.load(judged_run)).axes
    front = next(line for line in axes.lines if line.get_label() == "their front")
    # Trials 4 to 0: stability 0.5 to 0.9; closed to the left and downwards.
    assert np.asarray(front.get_xdata()) == pytest.approx([0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    rates = np.asarray(front.get_ydata())
    assert rates[-1] == 0
    assert (np.diff(rates) <= 0).all()


def boxes_of(figure, start):
    """Where the labels that begin so are drawn, without their arrows."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if text.get_text().startswith(start)]
    return [Text.get_window_extent(text, renderer) for text in labels]


def test_labels_of_neighbours_do_not_cover_each_other(tmp_path):
    for index in range(6):
        add_trial(tmp_path, f"a{index}", label=f"neighbour-{index}", won=[1.0, 1.0, 0.0, 0.0], stability=0.3)
    boxes = boxes_of(pareto(results.load(finish(tmp_path))), "neighbour")
    assert len(boxes) == 6
    assert not [(i, j) for i in range(6) for j in range(i) if boxes[i].overlaps(boxes[j])]


def test_labels_without_a_free_place_stay_inside(tmp_path):
    for index in range(30):
        add_trial(tmp_path, f"a{index}", label=f"neighbour-{index}", won=[1.0, 1.0, 0.0, 0.0], stability=1.0)
    figure = pareto(results.load(finish(tmp_path)))
    boxes = boxes_of(figure, "neighbour")
    assert any(box.overlaps(other) for box in boxes for other in boxes if box is not other)
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_without_a_judge_accuracy_is_on_the_axis(unjudged_run):
    figure = pareto(results.load(unjudged_run))
    assert figure.axes[0].get_ylabel() == "held-out preference accuracy, %"
    assert "50 %: no change" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_show_mean_and_range_over_seeds_per_row(judged_run):
    run = results.load(judged_run)
    run.curves.loc[run.curves["seed"] == 1, "value"] -= 0.2
    table = tables.win_rate_stability(run)
    figure = logprob_curves(run, table)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [label.replace("$", r"\$") for label in table.frame["label"]]
    panel = figure.axes[titles.index("search-0004")]
    chosen, rejected = panel.lines
    assert chosen.get_ydata() == pytest.approx([-0.2, -0.25, -0.3])
    assert rejected.get_ydata() == pytest.approx([-0.3, -0.35, -0.4])
    bands = [band.get_paths()[0].get_extents() for band in panel.collections]
    assert [(band.ymin, band.ymax) for band in bands] == [pytest.approx((-0.4, -0.1)), pytest.approx((-0.5, -0.2))]


def test_every_column_of_curves_has_its_updates_below_it(judged_run):
    run = results.load(judged_run)
    table = tables.win_rate_stability(run)
    # Six panels, four in the first row.
    few = replace(table, frame=table.frame.head(6))
    panels = [axes for axes in logprob_curves(run, few).axes if axes.get_title()]
    said = [axes.xaxis.get_tick_params()["labelbottom"] for axes in panels]
    assert said == [False, False, True, True, True, True]


def test_a_row_without_one_of_its_curves_has_the_other(judged_run):
    run = results.load(judged_run)
    curves = run.curves[~((run.curves["label"] == "search-0004") & (run.curves["metric"] == "rejected_logp"))]
    panels = {axes.get_title(): axes for axes in logprob_curves(replace(run, curves=curves)).axes}
    chosen, rejected = panels["search-0004"].lines
    assert chosen.get_ydata() == pytest.approx([-0.1, -0.15, -0.2])
    assert len(rejected.get_ydata()) == 0


def test_a_confirmed_winner_is_not_mixed_with_its_search_trial(judged_run):
    run = results.load(judged_run)
    own = rows.of_label(run, run.trials, "search-0004")
    assert own["trial_id"].tolist() == ["confirm-search-0004-s0", "confirm-search-0004-s1"]
    run.curves.loc[run.curves["phase"] == "search", "value"] = -9.0
    panels = {axes.get_title(): axes for axes in logprob_curves(run).axes}
    assert panels["search-0004"].lines[0].get_ydata() == pytest.approx([-0.1, -0.15, -0.2])


def test_trials_that_did_not_complete_are_drawn_but_never_make_the_front(tmp_path):
    add_trial(tmp_path, "s1", phase="search", won=[1.0, 0.0], stability=0.2)
    add_trial(tmp_path, "s2", phase="search", won=[1.0, 1.0], stability=0.9, status="stopped", reason="early")
    (axes,) = pareto(results.load(finish(tmp_path))).axes
    hollow = next(line for line in axes.lines if str(line.get_label()).startswith("search trials"))
    front = next(line for line in axes.lines if line.get_label() == "their front")
    assert len(hollow.get_xdata()) == 2
    assert max(front.get_xdata()) == pytest.approx(0.2)


def test_the_line_at_one_half_crosses_no_label(tmp_path):
    # Each label's nearest place, up and to the right of its marker, would be on the line.
    for place in (0.2, 0.5, 0.8):
        add_trial(tmp_path, f"a{place}", label=f"a{place}", won=[1.0] * 70 + [0.0] * 72, stability=place)
    figure = pareto(results.load(finish(tmp_path)))
    boxes, line = boxes_of(figure, "a"), figure.axes[0].transData.transform((0, 50))[1]
    assert len(boxes) == 3
    assert not [box for box in boxes if box.y0 <= line <= box.y1]


def test_the_legend_tells_the_bars_apart(judged_run, unjudged_run):
    titles = [pareto(results.load(run)).legends[0].get_title().get_text() for run in (judged_run, unjudged_run)]
    said = "upright bars: 95 % interval of the win rate; level bars: range of S over seeds"
    assert titles == [said, "bars: range of S over seeds"]


def test_without_a_confirmed_winner_the_best_search_trial_has_a_curve(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[1.0, 0.0])
    for number, won in enumerate(([0.0, 0.0], [1.0, 1.0])):
        add_trial(tmp_path, f"search-000{number}", label=f"search-000{number}", phase="search", won=won)
    run = results.load(finish(tmp_path))
    titles = [axes.get_title() for axes in logprob_curves(run).axes]
    assert titles == ["a", "search-0001"]


def test_with_a_confirmed_winner_its_search_trial_has_no_curve_of_its_own(judged_run):
    titles = [axes.get_title() for axes in logprob_curves(results.load(judged_run)).axes]
    assert titles.count("search-0004") == 1
    assert len(titles) == 8
