"""Lines of a terminal: tables, rules, blocks beside each other. What is too wide is left out, none is broken. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

QUIET, STRONG = "dim", "bold"
# Between blocks that stand beside each other.
APART = 3

# What is told, and its style.
Cell = tuple[str, str]


class Column(NamedTuple):
    """A column: at least so wide. Numbers stand at its right, text at its left.

    Those of the highest `rank` are left out first. What room is left goes to those with a `share`, until all they have
    is whole.
    """

    title: str
    width: int
    rank: int
    share: int = 0
    text: bool = False


class Section(NamedTuple):
    """A table: its title, what is said beside that, its columns, its rows."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]

    def lines(self, width: int, count: int, skip: int) -> list[Text]:
        """Under a rule, the columns' titles and so many rows."""
        total = len(self.rows)
        skip = max(min(skip, total - 1), 0)
        shown = self.rows[skip : skip + count]
        if not shown:
            return [rule(self.title, self.note if not total else f"{total} of them", width)]
        first, last = skip + 1, skip + len(shown)
        some = f"{first} of {total}" if first == last else f"{first} to {last} of {total}"
        note = ", ".join(filter(None, (str(total) if len(shown) == total else some, self.note)))
        widths = self._widths(width)
        titles = [(one.title, QUIET) for one in self.columns]
        return [rule(self.title, note, width), *(_row(self.columns, widths, one) for one in (titles, *shown))]

    def _widths(self, width: int) -> list[int]:
        """How wide each column is; 0 if it is left out."""
        kept = sorted(range(len(self.columns)), key=lambda index: self.columns[index].rank)
        while len(kept) > 1 and sum(self.columns[index].width + 2 for index in kept) - 2 > width:
            kept.pop()
        widths = [one.width if index in kept else 0 for index, one in enumerate(self.columns)]
        spare = width - sum(one + 2 for one in widths if one) + 2
        shares = sum(self.columns[index].share for index in kept)
        for index in kept:
            if (share := self.columns[index].share) and spare > 0:
                # In steps: a name more must not move all that stands beside it.
                longest = max(cell_len(row[index][0]) for row in self.rows)
                widths[index] += max(min(spare * share // shares, -(-longest // 8) * 8 - widths[index]), 0)
        return widths


def stacked(sections: Sequence[Section], width: int, room: int | None, skip: int) -> list[Text]:
    """Sections below each other, that share the room a row at a time."""
    wanted = [len(one.rows) for one in sections]
    counts = [0] * len(sections)
    left = sum(wanted) if room is None else room - sum(2 if one else 1 for one in wanted)
    while left > 0 and counts != wanted:
        for index, one in enumerate(wanted):
            if counts[index] < one and left > 0:
                counts[index] += 1
                left -= 1
    return [line for one, count in zip(sections, counts, strict=True) for line in one.lines(width, count, skip)]


def _row(columns: Sequence[Column], widths: Sequence[int], cells: Iterable[Cell]) -> Text:
    line = Text()
    for column, width, (told, style) in zip(columns, widths, cells, strict=True):
        if width:
            line.append("  " if line else "").append(_fitted(told, width, column.text), style)
    return line


def _fitted(told: str, width: int, left: bool) -> str:
    """So wide. Of names both ends are kept: what they are of, and what they are."""
    if (over := cell_len(told) - width) > 0:
        keep = len(told) - over - 1
        told = f"{told[: keep // 2]}…{told[len(told) - (keep - keep // 2) :]}" if keep > 1 else told
    padding = " " * (width - cell_len(told))
    return set_cell_size(told + padding if left else padding + told, width)


def rule(title: str, note: str, width: int) -> Text:
    """A line with a title in it."""
    line = Text.assemble(("─ ", QUIET), (title, STRONG), (f" {note} " if note else " ", QUIET))
    return cut(line.append("─" * max(width - line.cell_len, 0), QUIET), width)


def ends(left: Text, right: Sequence[str], width: int) -> Text:
    """One part at each end; of the right one, the first parts are left out where room is short."""
    cut(left, width)
    for begin in range(len(right)):
        told = " · ".join(right[begin:])
        if (apart := width - left.cell_len - cell_len(told)) >= 2:
            return left.append(" " * apart).append(told, QUIET)
    return left


def listed(parts: Sequence[Text], width: int) -> Text:
    """Parts beside each other, as many as there is room for."""
    line = Text("  ")
    for index, part in enumerate(parts):
        if index and line.cell_len + 3 + part.cell_len > width:
            break
        line.append("   " if index else "").append_text(part)
    return cut(line, width)


def beside(blocks: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """Blocks of lines of one width beside each other."""
    lines = []
    for index in range(max(map(len, blocks))):
        line = Text()
        for place, block in enumerate(blocks):
            line.append(" " * (place * (width + APART) - line.cell_len))
            line.append_text(block[index] if index < len(block) else Text())
        lines.append(line)
    return lines


def cut(line: Text, width: int) -> Text:
    """No wider than that."""
    line.truncate(width, overflow="ellipsis")
    return line
