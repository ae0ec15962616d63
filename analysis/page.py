"""The page of a report: its parts, and what its interactive front shows, as data.

`web/report.js` draws the front's points and each point's knobs, curves and answers. Nothing in that data is markup: the
page prints texts as texts.
"""

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from slime_ray.runs.results import Run

from . import methods, stability, statistics
from .figures import BLUE, GREEN, GREY, ORANGE, VERMILLION, front_corners, limits
from .front import outcomes_of
from .knobs import Searched
from .printing import Sentences, Table, number, one_line, short, with_interval
from .rows import FINISHED, baseline_of, flat, is_judged, keeping, name_of, of_label, version_of

HERE = Path(__file__).parent
COLOURS = {
    "#ffffff": "page",
    "#000000": "ink",
    "#e4e4e4": "grid",
    GREY: "grey",
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    ORANGE: "orange",
}
"""Colours of drawings that are others where a reader prefers a dark page: the variables of web/report.css."""
EXAMPLES = 5
LONGEST_ANSWER = 2000
SHOWN = ["prompt", "answer", "baseline_answer", "outcome", "broken_reason", "baseline_broken"]
"""Columns of an answer that a pair is made of."""
OUTCOMES = {1.0: "wins", 0.5: "ties", 0.0: "loses", 0.25: "ties and loses", 0.75: "wins and ties"}
STRETCHES = 60
"""A curve has at most so many points; of more updates the means of as many stretches."""
ALL_ANSWERS = 1_000_000
"""Characters of all answers together, so that a page stays small however many trials there are."""
SHORTEST = 200
LEAST_COMMON = 0.25
"""Of answers that share less than this of their words nothing is marked: it would be nearly everything."""
MOST_PAIRS = 20_000
"""Equal words, in pairs, up to which answers are compared: beyond it they repeat themselves, which takes long."""
CURVES = {
    ("held_out", "chosen_logp"): ("log-probability, nat/token", "chosen"),
    ("held_out", "rejected_logp"): ("log-probability, nat/token", "rejected"),
    ("train", "loss"): ("training loss", "loss"),
}
"""Source and metric of what is drawn -> the panel that it is in, and the line."""
ARM, WINNER, TRIAL = "arm", "confirmed winner", "search trial"
Facts = list[list[str]]
Spans = list[list[int]]
"""Where each stretch that the other text lacks begins and ends, in characters."""


@dataclass(frozen=True)
class ReportItem:
    """A table or a figure.

    name: of its files. under: the heading that it stands below. make: from what was found; None, or a table without
    rows, where the run has no such thing: then it has no files and is not shown. caption: of a figure; a table has its
    own. without_rows: a table is shown all the same, for its caption says why it has none. terminal: a table is printed
    in the terminal too. paper: a figure stays white on a dark page, for its scale of colours ends in dark ones.
    """

    name: str
    under: str
    make: Callable[[Any], Any]
    caption: str = ""
    without_rows: bool = False
    terminal: bool = True
    paper: bool = False


def build_page(
    run: Run, main: Table, searched: Searched, claims: Sentences, things: Sequence[tuple[ReportItem, Table | bytes]]
) -> str:
    """Build the page. claims: what it says first. things: its tables, and its figures as SVG, in their order."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["pieces"] = pieces
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    template = environment.get_template("report.html.jinja")
    front = front_data(run, main, searched)
    scripts = [_web("vega.min.js"), _web("report.js")] if front else []
    return template.render(
        name=one_line(name_of(run)),
        plan_facts=methods.plan_facts(run),
        unsettled=claims[0],
        settled=claims[1],
        sections=[
            {"title": under, "things": [_placed(item, thing) for item, thing in group]}
            for under, group in groupby(things, key=lambda item: item[0].under)
        ],
        examples=examples(run, main),
        methods=methods.methods(run),
        facts=methods.facts(run),
        style=_web("report.css"),
        scripts=scripts,
        policy=_policy(scripts),
        front=front,
        front_spec=json.loads(_web("front.vega.json")),
        curves_spec=json.loads(_web("curves.vegalite.json")),
    )


def _web(name: str) -> str:
    return (HERE / "web" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Return what a browser may do with the page: run these scripts, and load nothing.

    Whatever an answer holds, a script in it is none of these.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; script-src {allowed}"


def _placed(item: ReportItem, thing: Table | bytes) -> dict[str, Any]:
    if isinstance(thing, Table):
        return {"name": item.name, "table": thing}
    svg = _inline(thing, item.name)
    for colour, variable in () if item.paper else COLOURS.items():
        svg = re.sub(rf"(?<=[ :\"]){colour}(?=[;\"])", f"var(--{variable})", svg, flags=re.IGNORECASE)
    return {"name": item.name, "table": None, "svg": svg, "caption": item.caption, "paper": item.paper}


def _inline(svg: bytes, name: str) -> str:
    """Turn a drawing into a part of a page: no XML head, metadata or namespaces, and ids that no other has.

    Coordinates keep a hundredth of a point, and no space is left between tags: of a large search that is a third.
    """
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), text)
    text = (
        text.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    )
    text = text.replace("xlink:href=", "href=")
    return text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1)


def examples(run: Run, main: Table) -> dict[str, Any] | None:
    """Return answers of the best row's first seed to the first prompts by id, which are not chosen by content."""
    for label in main.frame["label"] if len(main.frame) else run.trials["label"]:
        answers = of_label(run, run.answers, label)
        if answers.empty:
            continue
        seed = answers["seed"].min()
        pairs = first_pairs(answers[answers["seed"] == seed])
        return {"label": label, "seed": int(seed), "pairs": next(iter(pairs.values()))}
    return None


def first_pairs(answers: pd.DataFrame, *, longest: int = LONGEST_ANSWER) -> dict[str, list[dict[str, Any]]]:
    """Return each trial's first answers by prompt id, each cut to `longest` characters."""
    first = answers.sort_values("prompt_id", kind="stable").groupby("trial_id", sort=False).head(EXAMPLES)
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in first[["trial_id", *SHOWN]].to_dict("records"):
        outcome = row["outcome"]
        answer, baseline = (_cut(row[name], longest) for name in ("answer", "baseline_answer"))
        answer_spans, baseline_spans = differing(answer, baseline)
        pairs.setdefault(row["trial_id"], []).append(
            {
                "prompt": _prompt(row["prompt"]),
                "answer": answer,
                "baseline": baseline,
                "added": answer_spans,
                "gone": baseline_spans,
                "verdict": "no verdict" if pd.isna(outcome) else OUTCOMES.get(outcome, str(outcome)),
                "broken": f"broken: {row['broken_reason']}" if pd.notna(row["broken_reason"]) else "",
                "baseline_broken": "broken" if row["baseline_broken"] is True else "",
            }
        )
    return pairs


def _prompt(text: Any) -> str:
    try:
        messages = json.loads(text)
        # What tools need is in further fields.
        texts = ["\n".join(text for name, text in message.items() if name != "role" and text) for message in messages]
        if len(messages) == 1:
            return texts[0]
        return "\n".join(f"{message['role']}: {text}" for message, text in zip(messages, texts, strict=True))
    except (TypeError, ValueError, KeyError):
        return str(text)


def _cut(text: Any, longest: int) -> str:
    if pd.isna(text):
        return ""
    return text if len(text) <= longest else text[:longest] + f" … ({len(text)} characters)"


def front_data(run: Run, main: Table, searched: Searched) -> dict[str, Any] | None:
    """Return everything that the front shows; None where there is no point to draw."""
    judged = is_judged(run)
    column = "win_rate" if judged else "preference_accuracy"
    search = run.trials[run.trials["phase"] == "search"].dropna(subset=["stability", column])
    frame = main.frame
    rows = frame.dropna(subset=[column, "stability"]) if len(frame) else frame
    trials = search.sort_values(column, kind="stable").to_dict("records")
    outcomes = outcomes_of(searched, run.answers) if judged else None
    trial_outcomes = [] if outcomes is None else zip(searched.trials["trial_id"], outcomes, strict=True)
    intervals = {name: statistics.win_rate_interval(row[None]) for name, row in trial_outcomes}
    points = [_trial(trial, column, intervals.get(trial["trial_id"])) for trial in trials]
    points += [_row(run, row, column) for _, row in rows.iloc[::-1].iterrows()]
    if not points:
        return None
    # Where on the line at 50 %, as a share of its length, words cover the fewest points.
    near = [np.sqrt(max(point["x"], 0.0)) for point in points if abs(point["y"] - 50) < 8]
    free = min((0.5, 0.75, 0.25, 0.88, 0.12), key=lambda place: sum(abs(place - x) < 0.12 for x in near))
    # Texts and steps that many trials share: each kept once and named by its place.
    texts: dict[str, int] = {}
    steps: dict[tuple[int, ...], int] = {}
    details = _details(run, points, texts, steps)
    heights = [point[end] for point in points for end in ("y", "low", "high") if point[end] is not None]
    return {
        "x": f"stability S ({version_of(run)}; square-root scale), more is better",
        "short": f"stability S ({version_of(run)})",
        "y": f"win rate against {baseline_of(run)}, %" if judged else "held-out preference accuracy, %",
        "limits": limits(heights, judged=judged),
        "judged": judged,
        "words": free,
        "points": points,
        "front": [{"x": _short(x), "y": _short(100 * y)} for x, y in front_corners(keeping(run, search), column)],
        "details": details,
        "texts": list(texts),
        "steps": [list(of_line) for of_line in steps],
    }


def _trial(trial: Mapping[Any, Any], column: str, interval: statistics.Interval | None) -> dict[str, Any]:
    record = pd.Series({**trial, **statistics.columns({column: interval}), column: trial[column]})
    facts = [[_head(column), with_interval(record, column, 1, scale=100)], ["stability S", number(trial["stability"])]]
    if trial["status"] != FINISHED:
        reason = f": {trial['reason']}" if pd.notna(trial["reason"]) else ""
        facts.append(["status", f"{trial['status']}{reason}"])
    place = (trial["stability"],) * 3
    return _point(trial["trial_id"], TRIAL, place, record, column, [*facts, *_knobs(trial["overrides"])])


def _row(run: Run, row: pd.Series, column: str) -> dict[str, Any]:
    label_trials = of_label(run, run.trials, row["label"])
    judged = column == "win_rate"
    facts = [
        [_head(column), with_interval(row, column, 1, scale=100) if judged else number(row[column], 1, scale=100)],
        ["stability S", stability.stability_cell(row)],
        ["seeds", f"{row['seeds_finished']}/{row['seeds']}"],
        ["K", number(row["kl_to_sft"], 3)],
        ["drift", number(row["chosen_drift"], 3, signed=True)],
        *([["note", row["note"]]] if row["note"] else []),
    ]  # fmt: skip
    place = (row["stability"], row["stability_min"], row["stability_max"])
    kind = WINNER if row["phase"] == "confirm" else ARM
    return _point(row["label"], kind, place, row, column, [*facts, *_knobs(label_trials["overrides"].iloc[0])])


def _point(
    label: str, kind: str, place: tuple[float, float, float], record: pd.Series, column: str, facts: Facts
) -> dict[str, Any]:
    x, left, right = (_short(value) for value in place)
    low, high = (_short(100 * record.get(f"{column}_{end}", np.nan)) for end in ("low", "high"))
    return {
        "id": f"{kind} {label}",
        "label": label,
        "kind": kind,
        "x": x,
        "left": left,
        "right": right,
        "y": _short(100 * record[column]),
        "low": low,
        "high": high,
        "facts": facts,
    }


def _head(column: str) -> str:
    return "win rate %" if column == "win_rate" else "accuracy %"


def _knobs(settings: Any) -> Facts:
    """Return what a trial set over the base, by path."""
    overrides = json.loads(settings) if isinstance(settings, str) else {}
    return [[path, short(value)] for path, value in flat(overrides).items()]


def _details(
    run: Run, points: list[dict[str, Any]], texts: dict[str, int], steps: dict[tuple[int, ...], int]
) -> dict[str, Any]:
    """Return curves and answers of each point's trials by its id. texts, steps: places of what is shared."""
    charted = pd.MultiIndex.from_frame(run.curves[["source", "metric"]]).isin(list(CURVES))
    lines = _lines(run.curves[charted].sort_values("step", kind="stable"), shared=steps)
    seeds = dict(zip(run.trials["trial_id"], run.trials["seed"].astype(int), strict=True))
    longest = int(np.clip(ALL_ANSWERS / (10 * len(points)), SHORTEST, LONGEST_ANSWER))
    pairs = first_pairs(run.answers, longest=longest)
    details = {}
    for point in points:
        # Of a row all its seeds, and the answers of the first that has any.
        label = point["label"]
        trial_ids = [label] if point["kind"] == TRIAL else of_label(run, run.trials, label)["trial_id"].tolist()
        answered = next((str(name) for name in trial_ids if name in pairs), "")
        details[point["id"]] = {
            "lines": [line for name in trial_ids for line in lines.get(name, [])],
            "seed": seeds.get(answered),
            "answers": [
                pair | {text: texts.setdefault(pair[text], len(texts)) for text in ("prompt", "baseline", "answer")}
                for pair in pairs.get(answered, ())
            ],
        }
    return details


def _lines(curves: pd.DataFrame, *, shared: dict[tuple[int, ...], int]) -> dict[str, list[dict[str, Any]]]:
    """Return each trial's lines: panel, name, seed, steps, values, and of how many updates a value is the mean.

    curves: by step, of the measures of CURVES alone. shared: by its steps the place that a line has for them.
    """
    curves = curves[np.isfinite(curves["value"])]
    all_steps, all_values, seeds = (curves[name].to_numpy() for name in ("step", "value", "seed"))
    groups: dict[Any, Any] = dict(curves.groupby(["trial_id", "source", "metric"], sort=False).indices)
    order = {measure: place for place, measure in enumerate(CURVES)}
    lines: dict[str, list[dict[str, Any]]] = {}
    for (trial_id, *measure), places in sorted(groups.items(), key=lambda item: order[item[0][1:]]):
        panel, name = CURVES[measure[0], measure[1]]
        steps, values = all_steps[places], all_values[places]
        lengths = np.array([len(stretch) for stretch in np.array_split(places, min(STRETCHES, len(places)))])
        ends = lengths.cumsum()
        means = np.add.reduceat(values, ends - lengths) / lengths
        lines.setdefault(trial_id, []).append(
            {
                "panel": panel,
                "name": name,
                "seed": int(seeds[places[0]]),
                "steps": shared.setdefault(tuple(steps[ends - 1].tolist()), len(shared)),
                "values": [_short(mean) for mean in means.tolist()],
                "updates": int(lengths[0]),
            }
        )
    return lines


def _short(value: float) -> float | None:
    """Round to four digits: more than that a page does not show."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def differing(first: str, second: str) -> tuple[Spans, Spans]:
    """Find the stretches of words in each text that the other has not in that place."""
    words = [list(re.finditer(r"\w+|[^\w\s]", text)) for text in (first, second)]
    first_words, second_words = ([word[0] for word in text] for text in words)
    counts = Counter(first_words), Counter(second_words)
    if sum(count * counts[1][word] for word, count in counts[0].items()) > MOST_PAIRS:
        return [], []
    matcher = SequenceMatcher(None, first_words, second_words, autojunk=False)
    if matcher.quick_ratio() < LEAST_COMMON or matcher.ratio() < LEAST_COMMON:
        return [], []
    first_spans: Spans = []
    second_spans: Spans = []
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        if start < end:
            first_spans.append([words[0][start].start(), words[0][end - 1].end()])
        if other_start < other_end:
            second_spans.append([words[1][other_start].start(), words[1][other_end - 1].end()])
    return first_spans, second_spans


def pieces(text: str, spans: Spans) -> list[tuple[bool, str]]:
    """Cut the text at its spans; mark each piece that is one of them."""
    ends = [0, *(end for span in spans for end in span), len(text)]
    cut = [(place % 2 == 1, text[ends[place] : ends[place + 1]]) for place in range(len(ends) - 1)]
    return [(marked, piece) for marked, piece in cut if piece]
