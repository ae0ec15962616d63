"""Text set in columns."""

from collections.abc import Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out columns as wide as their widest cell, the first to the left, the rest right."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def set_line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in rest)])

    set_lines = [set_line(line).rstrip() for line in lines]
    return "\n".join([set_lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *set_lines[1:]]).rstrip()
