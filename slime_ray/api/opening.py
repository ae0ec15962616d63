"""Open an experiment, whatever form it has, and check what it names before anything is started."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_ray.config.experiment import Experiment
from slime_ray.errors import InputError

ExperimentLike = str | Path | Mapping[str, Any] | Experiment
FROM_MODEL = "# This run was started from Python with an Experiment, which manifest.json holds.\n"


def open_experiment(
    experiment: ExperimentLike,
    *,
    name: str | None = None,
    trials: int | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Experiment, Path | str]:
    """Read and check an experiment, with what is changed of it.

    Args:
        experiment: A path, the name of one that ships, a mapping, or an Experiment.
        name: Of the run; None is the experiment's own.
        trials: Of the search, instead of its budget.
        seeds: Of the arms, instead of its own.
        overrides: Dotted paths, such as `training.updates`, with their values.

    Returns:
        The experiment, and its file or the text that stands for one.

    Raises:
        InputError: Something in it is wrong, or a file that it names cannot be read.
    """
    from slime_ray.config.experiment_file import load_experiment
    from slime_ray.config.yaml_source import from_mapping
    from slime_ray.search_spaces import find_space

    changes = dict(overrides or {})
    if trials is not None:
        changes["budget.trials"] = trials
    if seeds is not None:
        changes["seeds"] = list(seeds) if isinstance(seeds, Iterable) else seeds
    if isinstance(experiment, Experiment):
        if changes:
            raise InputError(f"{', '.join(changes)}: an Experiment is changed before it is given, or give its file.")
        renamed = experiment if name is None else experiment.model_copy(update={"name": name})
        return renamed, FROM_MODEL
    if isinstance(experiment, Mapping):
        loaded = load_experiment(experiment, overrides=changes, name=name)
        return loaded, json.dumps(from_mapping(experiment).data, indent=1) + "\n"
    source = find_space(str(experiment))
    return load_experiment(source, overrides=changes, name=name), source


def read_inputs(experiment: Experiment) -> None:
    """Read questions and chat templates, and import scorers and callbacks: trials run on the same files and code.

    Raises:
        InputError: One of them cannot be used.
    """
    from slime_ray.evaluation.questions import check_questions
    from slime_ray.model.parts import check_template
    from slime_ray.runs.inputs import all_settings

    check_questions(experiment)
    for settings in all_settings(experiment):
        check_template(settings.model)
    evaluation = experiment.settings.evaluation
    scorers = [("evaluation.judge.scorer", getattr(judge, "scorer", None)) for judge in evaluation.judge.members]
    if evaluation.retention:
        scorers.append(("evaluation.retention.scorer", evaluation.retention.scorer))
    for key, scorer in scorers:
        if scorer is not None:
            from slime_ray.evaluation.judges.exact import load_scorer

            load_scorer(scorer, key)
    if callbacks := experiment.settings.training.callbacks:
        from slime_ray.training.trainer import load_callbacks

        load_callbacks(callbacks)


def require_league(experiment: Experiment, source: Path | str) -> None:
    """Raise InputError where an experiment has no league."""
    if experiment.league is None:
        raise InputError(
            f"{source if isinstance(source, Path) else experiment.name} has no `league` with its entries. "
            "`slime-ray spaces show league_arithmetic` prints one."
        )


def require_design(experiment: Experiment, source: Path | str) -> None:
    """Raise InputError where an experiment has no design, with those that ship."""
    from slime_ray.search_spaces import shipped_designs

    if experiment.design is None:
        raise InputError(
            f"{source if isinstance(source, Path) else experiment.name} has no design. Give it one, as `ablate: "
            f"{{design: leave_one_out}}`, or run it with `slime-ray sweep`. Designs that ship: "
            f"{', '.join(shipped_designs())}."
        )
