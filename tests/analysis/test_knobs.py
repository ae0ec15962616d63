"""Knobs are read from the manifest's space and the trials' values, whatever a run has of the two."""

import numpy as np
import pandas as pd
import pytest
from slime_ray.analysis.knobs import Knob, Searched, knobs_of

from .searches import search_run


def knob(spec, values) -> Knob:
    run = search_run(len(values))
    run.manifest["experiment"]["search"]["dimensions"] = {} if spec is None else {"a.b": spec}
    trials = pd.DataFrame({"knob.a.b": values})
    (found,) = knobs_of(run, trials)
    return found


def test_the_space_says_range_scale_and_steps():
    knobs = {one.name: one for one in Searched.of(search_run(30)).knobs}
    assert (knobs["hard_margin"].scale, knobs["hard_margin"].low, knobs["hard_margin"].high) == ("linear", 0.5, 3.0)
    assert knobs["anchor_weight"].scale == "log"
    assert knobs["pairs_per_update"].step == 1
    assert knobs["schedule"].options == ("linear", "cosine")
    assert knobs["hard_margin"].step is None


@pytest.mark.parametrize(
    ("spec", "scale", "step"),
    [
        ({"uniform": [0.0, 4.0], "step": 0.5}, "linear", 0.5),
        ({"log_uniform": [0.5, 4.0], "uniform": None, "when": {"a.c": "x"}}, "log", None),
        ({"integer": [1, 4], "log": True}, "log", 1.0),
        ({"log_integer": [1, 4]}, "log", 1.0),
        (None, "linear", None),
    ],
)
def test_every_way_to_draw_a_number_has_its_scale(spec, scale, step):
    found = knob(spec, [1.0, 2.0])
    assert (found.scale, found.step) == (scale, step)
    assert found.unit(np.array([found.low, found.high])).tolist() == [0, 1]
    assert found.at(found.unit(np.array([1.5]))) == pytest.approx([1.5])


def test_a_point_outside_the_space_widens_it():
    found = knob({"uniform": [0.0, 1.0]}, [0.5, 7.0])
    assert (found.low, found.high) == (0.0, 7.0)


def test_options_are_found_however_a_file_wrote_them():
    # A column in which all are numbers holds numbers; any other holds JSON.
    assert knob({"choice": [8, 16]}, [8.0, 16.0]).places(pd.Series([16.0, np.nan])) == pytest.approx(
        [1, np.nan], nan_ok=True
    )
    mixed = knob({"choice": ["cosine", True, 0.5]}, ['"cosine"', "true", "0.5"])
    assert mixed.options == ("cosine", "true", "0.5")
    assert mixed.places(pd.Series(["0.5", '"cosine"'], dtype=object)).tolist() == [2, 0]
    assert knob(None, ['{"name": "dpo"}', '{"name": "sft"}']).scale == "choice"


def test_a_knob_that_some_trials_lack_is_not_there_for_them():
    searched = Searched.of(run := search_run(20))
    column = [one.name for one in searched.knobs].index("warmup_fraction")
    lacking = (run.trials["knob.training.schedule"] == '"linear"').to_numpy()
    assert np.isnan(searched.places[:, column]).tolist() == lacking.tolist()


def test_knobs_of_one_value_are_not_searched_and_equal_names_are_told_apart():
    run = search_run(4)
    trials = pd.DataFrame({"knob.a.rate": [1.0, 2.0], "knob.b.rate": [3.0, 4.0], "knob.c": [1.0, 1.0]})
    assert [one.name for one in knobs_of(run, trials)] == ["a.rate", "b.rate"]
