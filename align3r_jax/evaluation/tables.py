"""One table, three formats: Markdown, LaTeX and HTML from the same rows."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence

from align3r_jax.evaluation import published

_LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
     "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
     "<": r"$<$", ">": r"$>$", "|": r"$|$"}
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """key: of the values of a row. digits: after the point. better: "lower", "higher" or ""."""

    key: str
    title: str
    digits: int = 3
    better: str = ""

    @property
    def heading(self) -> str:
        """The title with an arrow in the better direction."""
        arrow = {"lower": " ↓", "higher": " ↑"}.get(self.better, "")
        return f"{self.title}{arrow}"


@dataclasses.dataclass(frozen=True)
class Row:
    """values: key -> number, text, or None for what is not known. strong: drawn bold."""

    name: str
    values: Mapping[str, float | int | str | None]
    missing: str = "–"
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """columns after the name of the row, rows in order, sentences below."""

    title: str
    name_heading: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def used(self) -> Table:
        """Returns the table without columns of which no row has a value."""
        kept = tuple(
            column
            for column in self.columns
            if any(row.values.get(column.key) is not None for row in self.rows)
        )
        return dataclasses.replace(self, columns=kept)


DEPTH_COLUMNS = (
    Column("Abs Rel", "Abs Rel", 3, "lower"),
    Column("Sq Rel", "Sq Rel", 3, "lower"),
    Column("RMSE", "RMSE", 3, "lower"),
    Column("Log RMSE", "Log RMSE", 3, "lower"),
    Column("delta < 1.25", "δ < 1.25", 3, "higher"),
    Column("delta < 1.25^2", "δ < 1.25²", 3, "higher"),
    Column("delta < 1.25^3", "δ < 1.25³", 3, "higher"),
    Column("TAE", "TAE", 4, "lower"),
    Column("TAE floor", "TAE of the truth", 4),
    Column("coverage", "coverage", 3, "higher"),
)
POSE_COLUMNS = (
    Column("ate", "ATE [m]", 4, "lower"),
    Column("standing_ate", "standing camera", 4),
    Column("rpe_trans", "RPE trans [m]", 4, "lower"),
    Column("rpe_rot_deg", "RPE rot [deg]", 3, "lower"),
)
MOTION_COLUMNS = (
    Column("J&F", "J&F", 3, "higher"),
    Column("J", "J", 3, "higher"),
    Column("F", "F", 3, "higher"),
    Column("iou", "IoU", 3, "higher"),
    Column("precision", "precision", 3, "higher"),
    Column("recall", "recall", 3, "higher"),
)
COLUMNS = {
    "video_depth": DEPTH_COLUMNS,
    "single_depth": DEPTH_COLUMNS,
    "camera_pose": POSE_COLUMNS,
    "motion": MOTION_COLUMNS,
}


def scores_of(task: str) -> tuple[str, ...]:
    """The keys of the columns of a task."""
    return tuple(column.key for column in COLUMNS[task])


def published_rows(task: str, dataset: str) -> tuple[Row, ...]:
    """Rows of others, with protocol and source in the columns of `SOURCE_COLUMNS`."""
    return tuple(
        Row(
            row.title,
            {**row.metrics, "protocol": row.protocol, "source": _told(row)},
            missing=published.NOT_FOUND,
        )
        for row in published.rows(task, dataset)
    )


SOURCE_COLUMNS = (Column("protocol", "protocol"), Column("source", "source"))


def _told(row: published.Published) -> str:
    return f"{row.source}; {row.note}" if row.note else row.source


def to_markdown(tables: Sequence[Table]) -> str:
    """Returns the tables as GitHub Markdown."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", ""]
        heads = [table.name_heading, *(column.heading for column in table.columns)]
        lines += [_bars(heads), _bars(["---"] * len(heads))]
        for row in table.rows:
            cells = [cell.replace("|", "\\|") for cell in _cells(row, table.columns)]
            lines.append(_bars([f"**{c}**" if row.strong and c else c for c in cells]))
        lines += [""] + [f"- {note}" for note in table.notes]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def to_latex(tables: Sequence[Table]) -> str:
    """Returns the tables as LaTeX `tabular` with booktabs rules, one `table` float each."""
    parts = []
    for table in tables:
        arrows = str.maketrans({"↓": r"$\downarrow$", "↑": r"$\uparrow$", "δ": r"$\delta$",
                                "²": "$^2$", "³": "$^3$", "–": "--"})  # fmt: skip
        heads = [table.name_heading, *(column.heading for column in table.columns)]
        lines = [
            r"\begin{table}",
            rf"\caption{{{_escaped(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(_escaped(head).translate(arrows) for head in heads) + r" \\",
            r"\midrule",
        ]
        for row in table.rows:
            cells = [_escaped(cell).translate(arrows) for cell in _cells(row, table.columns)]
            if row.strong:
                cells = [rf"\textbf{{{cell}}}" for cell in cells]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in table.notes)]
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def to_html(
    tables: Sequence[Table], title: str, style: str = "", pictures: Sequence[tuple[str, str]] = ()
) -> str:
    """Returns one page. style: CSS. pictures: (caption, address) after the tables."""
    parts = []
    for table in tables:
        head = "".join(
            f'<th scope="col">{html.escape(text)}</th>'
            for text in (table.name_heading, *(column.heading for column in table.columns))
        )
        body = ""
        for row in table.rows:
            first, *others = (html.escape(cell) for cell in _cells(row, table.columns))
            tag = "strong" if row.strong else "span"
            body += f'<tr><th scope="row"><{tag}>{first}</{tag}></th>'
            body += "".join(f"<td><{tag}>{cell}</{tag}></td>" for cell in others) + "</tr>"
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
        parts.append(
            f'<section><h2>{html.escape(table.title)}</h2><div class="scroll">'
            f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            + (f"<ul>{notes}</ul>" if notes else "")
            + "</section>"
        )
    figures = "".join(
        f'<figure><img src="{html.escape(address)}" alt="{html.escape(caption)}" loading="lazy">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, address in pictures
    )
    if figures:
        parts.append(f'<section><h2>Pictures</h2><div class="columns">{figures}</div></section>')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{style}</style></head><body><h1>{html.escape(title)}</h1>"
        f"{''.join(parts)}</body></html>\n"
    )


def _cells(row: Row, columns: Sequence[Column]) -> list[str]:
    cells = [row.name]
    for column in columns:
        value = row.values.get(column.key)
        if value is None:
            cells.append(row.missing)
        elif isinstance(value, str):
            cells.append(value)
        elif isinstance(value, int):
            cells.append(str(value))
        else:
            cells.append(f"{value:.{column.digits}f}")
    return cells


def _bars(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.translate(_LATEX)
