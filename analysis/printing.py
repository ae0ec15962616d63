"""A table and its forms: terminal, Markdown, LaTeX, HTML, CSV, JSON."""

import html
import math
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import pandas as pd
from rich.cells import cell_len

ABSENT = "–"
"""What a cell says where there is no number."""

NAMES = 10
SHORT = 12
"""Letters up to which the page never breaks a column's texts."""
Mark = Literal["", "best", "second"]
Sentences = tuple[list[str], list[str]]
"""What is open, and what can be said."""
_SIGNS: dict[Mark, str] = {"": "", "best": "*", "second": "+"}
_LONGEST, _LONGEST_LABEL = 44, 48
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "σ": r"$\sigma$",
    "√": r"$\surd$",
    "²": r"\textsuperscript{2}",
    "…": r"\ldots{}",
    "[": "{[}",  # a bracket after \\ would be its optional argument
    **{letter: "\\" + letter for letter in "&%$#_{}"},
}

_LIGATURES = ("--", "–-", "-–", "––", "!`", "?`", ",,")
"""Letters that LaTeX would print as another one."""


@dataclass(frozen=True)
class Column:
    """One printed column: its head, one text and one mark per row.

    keep: where the page is too narrow the terminal leaves out the columns with the lowest value first. From NAMES on a
    column says which row it is, and is never cut. words: the head on the page, where the short one needs a legend.
    group: on the page all columns of a group are one with this head, at the place of the last, and each cell a small
    bar of its share in `bars`, from 0 to 1.
    """

    head: str
    cells: tuple[str, ...]
    marks: tuple[Mark, ...] = ()
    numeric: bool = True
    keep: int = 5
    words: str = ""
    group: str = ""
    bars: tuple[float, ...] = ()

    def mark(self, row: int) -> Mark:
        """Return the mark of one cell."""
        return self.marks[row] if self.marks else ""


@dataclass(frozen=True)
class Table:
    """Tidy numbers (`frame`), how they are printed (`columns`), and what must be known to read them."""

    frame: pd.DataFrame
    caption: str
    notes: list[str]
    columns: tuple[Column, ...] = ()
    remarks: tuple[str, ...] = ()
    """A remark per row ("no change", "failed 1 of 2: ..."): a last column, or lines under the table."""

    def by(self, column: str) -> dict[Any, dict[Any, Any]]:
        """Return the rows of `frame` by a column, none of whose values is there twice."""
        return self.frame.set_index(column).to_dict("index") if len(self.frame) else {}

    def _printed(self) -> tuple[Column, ...]:
        remarks = (Column("note", self.remarks, numeric=False),) if any(self.remarks) else ()
        return (*self.columns, *remarks)

    def _remarks(self) -> list[str]:
        """Return the remarks, each after the names of its row."""
        naming = list(takewhile(lambda column: column.keep >= NAMES, self.columns))
        rows = [", ".join(column.cells[row] for column in naming) for row in range(len(self.remarks))]
        return [f"{row}: {remark}" for row, remark in zip(rows, self.remarks, strict=True) if remark]

    def _marked(
        self, columns: Sequence[Column], escape: Callable[[str], str], best: str, second: str
    ) -> list[list[str]]:
        """Return the cells of each row, escaped and in the form of their mark."""
        forms = {"": "{}", "best": best, "second": second}
        return [
            [forms[column.mark(row)].format(escape(column.cells[row])) for column in columns]
            for row in range(len(self.frame))
        ]

    def csv(self) -> str:
        """Write the numbers of `frame`, unrounded."""
        return self.frame.to_csv(index=False, lineterminator="\n")

    def json(self) -> str:
        """Write the same as a list of objects, one a row; null where there is no number."""
        return self.frame.to_json(orient="records", indent=1, double_precision=15, force_ascii=False)

    def markdown(self) -> str:
        """Render a pipe table. **Bold** is the best, <u>underlined</u> the second."""
        columns = self._printed()
        rows = self._marked(columns, _markdown, "**{}**", "<u>{}</u>")
        if rows:
            rules = ["---:" if column.numeric else "---" for column in columns]
            rows = [[_markdown(column.head) for column in columns], rules, *rows]
        lines = (f"| {' | '.join(cells)} |" for cells in rows)
        return "\n".join(
            [_markdown(self.caption), "", *lines, "", *(f"- {_markdown(note)}" for note in self.notes), ""]
        )

    def latex(self, label: str = "") -> str:
        """Render a table environment for booktabs and graphicx, notes below. label: by which a text refers to it."""
        heads = [latex_text(column.head) for column in self.columns]
        shape = "".join("r" if column.numeric else "l" for column in self.columns) or "l"
        rows = self._marked(self.columns, latex_text, r"\textbf{{{}}}", r"\underline{{{}}}")
        below = r"\par ".join(map(latex_text, [*self._remarks(), *self.notes]))
        lines = [
            "% needs \\usepackage{booktabs,graphicx}; labels beyond Latin letters need XeLaTeX or LuaLaTeX",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(self.caption)}}}",
            *([rf"\label{{{label}}}"] if label else []),
            r"\vspace{0.5em}",  # article's captions leave no room below them
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{shape}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in rows),
            r"\bottomrule",
            r"\end{tabular}}",
            *([rf"\par\smallskip\raggedright\footnotesize {below}"] if below else []),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """Render a <table> whose heads and first cells name what they head, escaped; the notes are the page's."""
        columns = self._printed()
        visible = [column for column in columns if not column.group or column is _group(columns, column)[-1]]
        kinds = [_kind(column) for column in visible]

        def line(scope: str, cells: list[str]) -> str:
            tags = [f'th scope="{scope}"' if scope == "col" or place == 0 else "td" for place in range(len(cells))]
            parts = zip(tags, kinds, cells, strict=True)
            return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag[:2]}>' for tag, kind, cell in parts)}</tr>"

        def cell(column: Column, row: int) -> str:
            if column.group:
                return _bars(_group(columns, column), row)
            text = html.escape(column.cells[row])
            if column.numeric:
                # An interval stands below its value.
                text = re.sub(r"^(\S+) ([\[(].+)$", r"\1 <span>\2</span>", text)
            return {"": "{}", "best": "<b>{}</b>", "second": "<u>{}</u>"}[column.mark(row)].format(text)

        head = line("col", [_html_head(column) for column in visible])
        body = (line("row", [cell(column, row) for column in visible]) for row in range(len(self.frame)))
        caption = f"<table><caption><span>{html.escape(self.caption)}</span></caption>"
        return "\n".join([caption, f"<thead>{head}</thead>", "<tbody>", *body, "</tbody></table>"])

    def _repr_html_(self) -> str:
        """Render it as a notebook shows it: the table and its notes."""
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"{self.html()}\n<ul>{notes}</ul>"

    def text(self, width: int = 140) -> str:
        """Render for the terminal, at most `width` wide if it can be: `*` after the best, `+` after the second."""
        lines = _wrapped(self.caption, width)
        columns = list(self.columns)
        left_out = []
        if len(self.frame):
            while len(columns) > 1 and _total_width(columns) > width:
                least = min(columns, key=lambda column: column.keep)
                left_out.append(least.head)
                columns.remove(least)
            lines += ["", _text_row([column.head for column in columns], columns)]
            lines.append("  ".join("-" * _column_width(column) for column in columns))
            for row in range(len(self.frame)):
                lines.append(_text_row([_text_cell(column, row) for column in columns], columns))
        lines.append("")
        for remark in self._remarks():
            lines += _wrapped(remark, width)
        if left_out:
            lines += _wrapped(f"Left out here for width: {', '.join(left_out)}.", width)
        if any(column.marks for column in self.columns):
            lines.append("Bold in the notes below is * here, and underlined is +.")
        for note in self.notes:
            lines += _wrapped(note, width)
        return "\n".join(lines).strip("\n")


def empty(caption: str, column: str = "label") -> Table:
    """Return a table without rows, whose caption says why. column: of its frame."""
    return Table(frame=pd.DataFrame(columns=[column]), caption=caption, notes=[])


def number(value: float, digits: int = 2, *, scale: float = 1.0, signed: bool = False) -> str:
    """Write a number as a cell says it; ABSENT where there is none."""
    if pd.isna(value):
        return ABSENT
    text = f"{scale * value:{'+' if signed else ''}.{digits}f}"
    # No minus before a rounded zero.
    return text[1:] if text.startswith("-") and float(text) == 0 else text


def with_interval(row: Mapping[Any, Any] | pd.Series, name: str, digits: int = 2, **form: Any) -> str:
    """Write `value [low, high]` of the columns `name`, `name`_low and `name`_high; the value alone without ends."""
    value, low, high = (number(row[f"{name}{end}"], digits, **form) for end in ("", "_low", "_high"))
    return value if ABSENT in (value, low, high) else f"{value} [{low}, {high}]"


def numbers(frame: pd.DataFrame, name: str, digits: int = 2, **form: Any) -> tuple[str, ...]:
    """Write one `number` a row; ABSENT in all rows where the frame has no such column."""
    values = frame[name] if name in frame else [math.nan] * len(frame)
    return tuple(number(value, digits, **form) for value in values)


def interval_cells(frame: pd.DataFrame, name: str, digits: int = 2, **form: Any) -> tuple[str, ...]:
    """Write one `with_interval` a row."""
    return cells(frame, lambda row: with_interval(row, name, digits, **form))


def measure(
    head: str,
    frame: pd.DataFrame,
    name: str,
    digits: int = 2,
    *,
    scale: float = 1.0,
    signed: bool = False,
    **column: Any,
) -> Column:
    """Build a column of numbers, with intervals and a head that says so where there are any. column: its fields."""
    has_ends = f"{name}_low" in frame and frame[f"{name}_low"].notna().any()
    column_cells = (interval_cells if has_ends else numbers)(frame, name, digits, scale=scale, signed=signed)
    return Column(f"{head} [95 %]" if has_ends else head, column_cells, **column)


def names(head: str, frame: pd.DataFrame, name: str = "", keep: int = NAMES) -> Column:
    """Build a column of texts. name: of the frame's column, which is the head if nothing is given."""
    return Column(head, tuple(frame[name or head]), numeric=False, keep=keep)


def seeds_column(frame: pd.DataFrame, keep: int) -> Column:
    """Build the column of finished seeds, of how many there are."""
    pairs = zip(frame["seeds_finished"], frame["seeds"], strict=True)
    return Column("seeds", tuple(f"{finished:.0f}/{all_:.0f}" for finished, all_ in pairs), keep=keep)


def ranges(frame: pd.DataFrame, low: str, high: str) -> tuple[str, ...]:
    """Write the values of two columns as a range, equal ones once."""
    ends = zip(numbers(frame, low), numbers(frame, high), strict=True)
    return tuple("–".join(dict.fromkeys(pair)) for pair in ends)


def cells(frame: pd.DataFrame, say: Callable[[pd.Series], str]) -> tuple[str, ...]:
    """Write one text a row."""
    return tuple(say(row) for _, row in frame.iterrows())


def p_words(p: float) -> str:
    """Write a p-value as a cell says it."""
    return "<0.001" if p < 0.001 else number(p, 3)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Shorten each path to its last word; two with the same one keep their whole paths."""
    short = {path: path.rpartition(".")[2] for path in paths}
    return short if len(set(short.values())) == len(short) else {path: path for path in paths}


def unit_of(goal: str) -> tuple[str, float, int]:
    """Return how a goal is shown: head, factor, digits."""
    percent = {"win_rate": "win rate %", "preference_accuracy": "acc. %"}
    return (percent[goal], 100.0, 1) if goal in percent else (goal.replace("_", " "), 1.0, 2)


def is_number(value: Any) -> bool:
    """Tell whether a knob's value is a number; of true and false it is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def short(value: Any) -> str:
    """Write a knob's value with three digits, or all before the point; ABSENT for null."""
    if not is_number(value):
        return ABSENT if value is None else one_line(str(value))
    if pd.isna(value):
        return ABSENT
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def one_line(text: str) -> str:
    """Strip `text` of line breaks and control characters (a terminal would obey them)."""
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text).split())


def join_words(texts: Iterable[str]) -> str:
    """Write texts as a sentence lists them."""
    *rest, last = texts
    return f"{', '.join(rest)} and {last}" if rest else last


def unbroken(sentence: str) -> str:
    """Keep a percent sign on the line of its number."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), width=max(width, 40), break_long_words=True, break_on_hyphens=False)


def _text_cell(column: Column, row: int) -> str:
    text = one_line(column.cells[row])
    sign = _SIGNS[column.mark(row)] or (" " if column.marks else "")
    # Two labels that differ in their last letters are two rows.
    whole = len(text) <= _LONGEST or column.keep >= NAMES
    return (text if whole else text[: _LONGEST - 1] + "…") + sign


def _column_width(column: Column) -> int:
    cells = [_text_cell(column, row) for row in range(len(column.cells))]
    return max(map(cell_len, [column.head, *cells]))


def _total_width(columns: list[Column]) -> int:
    """Return the width that decides which columns are left out; a label costs _LONGEST_LABEL at most."""
    label, *widths = (_column_width(column) for column in columns)
    return min(label, _LONGEST_LABEL) + sum(widths) + 2 * len(widths)


def _text_row(cells: list[str], columns: list[Column]) -> str:
    padded = []
    for cell, column in zip(cells, columns, strict=True):
        fill = " " * (_column_width(column) - cell_len(cell))
        padded.append(fill + cell if column.numeric else cell + fill)
    return "  ".join(padded).rstrip()


def _kind(column: Column) -> str:
    if column.numeric and not column.group:
        return ""
    short = not column.group and max(map(len, column.cells), default=0) <= SHORT
    return f' class="text{" short" * short}"'


def _html_head(column: Column) -> str:
    """Escape a head that may break within a setting's path, but not before a percent sign."""
    head = html.escape(column.group or column.words or column.head)
    return re.sub(r"(?<=\w)([._])(?=\w)", r"\1<wbr>", head.replace(" %", "&nbsp;%"))


def _group(columns: Sequence[Column], member: Column) -> list[Column]:
    return [column for column in columns if column.group == member.group]


def _bars(group: list[Column], row: int) -> str:
    """Draw small bars, each over its column's letter; the numbers are for a pointer and a screen reader."""
    heights = [column.bars[row] for column in group]
    if all(map(math.isnan, heights)):
        return ABSENT
    label = html.escape("; ".join(f"{column.words or column.head} {column.cells[row]}" for column in group))
    bars = "".join(
        f'<i style="--h:{0 if math.isnan(height) else height:.3g}">{html.escape(column.head[:1])}</i>'
        for column, height in zip(group, heights, strict=True)
    )
    return f'<span class="bars" role="img" aria-label="{label}" title="{label}">{bars}</span>'


def _markdown(text: str) -> str:
    """Escape text for Markdown, in one table cell."""
    return re.sub(r"([\\`*_|<>\[\]~$])", r"\\\1", one_line(text)).replace("&", "&amp;")


def latex_text(text: str) -> str:
    """Escape text for LaTeX, in any font encoding."""
    quoted = re.sub(r'"([^"]*)"', r"``\1''", one_line(text))
    pairs = zip(" " + quoted, quoted, strict=False)
    return "".join("{}" * (pair in _LIGATURES) + _LATEX.get(pair[1], pair[1]) for pair in map("".join, pairs))
