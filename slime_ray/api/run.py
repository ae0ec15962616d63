"""A run as Python sees it: tidy frames, tables and figures, all read when they are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from slime_ray.analysis.printing import Table
    from slime_ray.analysis.report import Findings
    from slime_ray.runs import results


@dataclass(frozen=True)
class Run:
    """One run. What it holds is read once; `slime_ray.load` reads a run anew that has gone on.

    Attributes:
        path: Its folder on this machine.
    """

    path: Path

    @cached_property
    def _results(self) -> "results.Run":
        from slime_ray.runs import results

        return results.load(self.path)

    @property
    def manifest(self) -> dict[str, Any]:
        """What it was started with: experiment, versions, hashes."""
        return self._results.manifest

    @property
    def trials(self) -> "pd.DataFrame":
        """A row per trial: knobs, how it ended, what was measured."""
        return self._results.trials

    @property
    def curves(self) -> "pd.DataFrame":
        """A row per trial, step and metric."""
        return self._results.curves

    @property
    def answers(self) -> "pd.DataFrame":
        """A row per trial and prompt, with the judge's verdict."""
        return self._results.answers

    @property
    def verdicts(self) -> "pd.DataFrame":
        """A row per verdict of each judge of a panel; empty where one judge judged."""
        return self._results.verdicts

    @property
    def pairs(self) -> "pd.DataFrame":
        """A row per trial and held-out pair."""
        return self._results.pairs

    @cached_property
    def _findings(self) -> "Findings":
        from slime_ray.analysis.report import Findings

        return Findings(self._results)

    @cached_property
    def _artifacts(self) -> Mapping[str, Mapping[str, Any]]:
        from slime_ray.analysis.printing import Table
        from slime_ray.analysis.report import made

        artifacts: dict[str, dict[str, Any]] = {"tables": {}, "figures": {}}
        for entry, artifact in made(self._findings):
            artifacts["tables" if isinstance(artifact, Table) else "figures"][entry.name] = artifact
        return artifacts

    @property
    def table(self) -> "Table":
        """Win rate and stability; of a run that only searched, its search trials. Numbers are in its `frame`."""
        main = self._findings.main
        return self._findings.search_trials if main.frame.empty else main

    @property
    def tables(self) -> Mapping[str, "Table"]:
        """All tables of the report, by name."""
        return self._artifacts["tables"]

    @property
    def figures(self) -> Mapping[str, "Figure"]:
        """All figures of the report, by name."""
        return self._artifacts["figures"]

    def report(self, out: str | Path | None = None) -> Path:
        """Write tables, figures and report.html.

        Args:
            out: Folder to write to; None is the run's own folder `report`.

        Returns:
            Where report.html is.

        Raises:
            InputError: Nothing has finished, or `out` cannot be written.
        """
        from slime_ray.analysis.report import write_report

        return write_report(self.path, out).html

    def export(
        self,
        trial: str,
        to: str | Path,
        *,
        merge: bool = False,
        dtype: str | None = None,
        push_to_hub: str | None = None,
        private: bool = False,
    ) -> Path:
        """Write a trial's model as transformers and peft load it.

        Args:
            trial: Its id, such as arm-slime-s0.
            to: Folder to write to, which is not there yet.
            merge: Whether adapters of LoRA are merged into a whole model. Else SFT and preference training are one
                adapter on the model that the experiment names.
            dtype: Of a whole model's weights, float32 (default) or bfloat16.
            push_to_hub: Repository to push it to, as ORG/NAME, with the token of HF_TOKEN or `hf auth login`.
            private: Whether that one is private, where it is new.

        Returns:
            The folder.

        Raises:
            InputError: There is no such trial, its model is gone, or it cannot be exported so.
            RunError: The Hub failed; the folder is there.
        """
        from slime_ray.training.export import export_model

        return export_model(
            self.path, trial, Path(to), merge=merge, dtype=dtype, push_to=push_to_hub, private=private,
            facts=self.row_of(trial),
        )  # fmt: skip

    def row_of(self, trial: str) -> dict[str, str]:
        """Tell a trial's row of the main table in words, for its model card.

        Args:
            trial: Its id.

        Returns:
            Facts by what they are called; none where the trial has no row.
        """
        if not (self.path / "manifest.json").is_file():
            return {}
        labels = set(self.trials.loc[self.trials["trial_id"] == trial, "label"])
        frame = self._findings.main.frame
        rows = frame[frame["label"].isin(labels)].to_dict("records")
        if not rows:
            return {}
        row = rows[0]
        facts = {"row of the report": f"{row['label']}, {row['seeds_finished']} of {row['seeds']} seeds"}
        for name, words in (("win_rate", "win rate"), ("stability", "stability S")):
            value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
            # NaN where nothing was judged, or nothing could be resampled.
            if value is not None and value == value:
                facts[words] = f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low == low and low is not None else "")
        return facts

    def __repr__(self) -> str:
        """A line: where it is, and how many of its trials ended how, or why that cannot be said."""
        try:
            ends = self.trials["status"].value_counts()
        except InputError as error:
            return f"Run({error})"
        return f"Run({str(self.path)!r}: {', '.join(f'{count} {status}' for status, count in ends.items())})"

    def _repr_html_(self) -> str | None:
        """As a notebook shows it: its main table; None, for which it takes the line, where nothing can be read."""
        try:
            return self.table._repr_html_()
        except InputError:
            return None
