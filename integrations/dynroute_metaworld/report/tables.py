"""Pieces of a page: tables that scroll in a box of their own, details that open, numbers for people."""

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ["box", "details", "number", "span", "table"]


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits behind the point; a dash for None.

    Example:
        >>> from dynroute_metaworld.report.tables import number
        >>> number(0.5), number(None)
        ('0.50', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def span(interval: Sequence[float] | None) -> str:
    """An interval; a dash for None.

    Example:
        >>> from dynroute_metaworld.report.tables import span
        >>> span((0.25, 1.0))
        '0.25 to 1.00'
    """
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def box(content: str, label: str) -> str:
    """A box in which wide content scrolls, also by the keyboard; the page itself stays as wide as the screen."""
    return f'<div class="box" role="region" aria-label="{escape(label)}" tabindex="0">{content}</div>'


def details(title: str, content: str, *, opened: bool = False) -> str:
    """Content that a click on its title opens and closes."""
    return f"<details{' open' * opened}><summary>{escape(title)}</summary>{content}</details>"


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], *, raw: int | None = None, kind: str = ""
) -> str:
    """A table whose first column names its rows. Everything is escaped.

    Args:
        caption: What it shows.
        heads: The names of the columns.
        rows: The cells.
        raw: The column that holds HTML already.
        kind: A class for the table.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{cell if i == raw else escape(str(cell))}</td>" for i, cell in enumerate(others, start=1))
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    parts = [f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>", "<tbody>", *lines]
    return box(f'<table class="{kind or "figures"}">{"".join(parts)}</tbody></table>', caption)
