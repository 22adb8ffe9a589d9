"""The page around the pictures: one file, no request, and nothing in it runs but two scripts named by their hash."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import msgspec

from edgebert.bench_table import ratio_line, table_cells
from edgebert.evaluation_table import evaluation_cells
from edgebert.report._drawing import load_altair, load_converter
from edgebert.report._results import Host, Results, as_row


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page.

    Attributes:
        name: Its name.
        title: Its heading.
        caption: One sentence on what it shows.
        command: Which command gives what it shows.
        specification: Its chart in Vega-Lite; None where the results have nothing for it.
    """

    name: str
    title: str
    caption: str
    command: str
    specification: dict[str, Any] | None


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 1180px; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.facts, .caption { color: #555; font-size: .9rem; }
.facts { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e2e2e2; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #999; }
figure { margin: 0; }
.chart { width: 100%; min-height: 3rem; }
.failed { color: #a00; }
code { background: #f3f3f3; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere; }
""".strip()

_DRAW = """
const specifications = JSON.parse(document.getElementById("specifications").textContent);
const options = {actions: false, renderer: "svg", ast: true};
Promise.all(Object.entries(specifications).map(async ([name, specification]) => {
  const place = document.getElementById("chart-" + name);
  try {
    await vegaEmbed(place, specification, options);
  } catch (error) {
    place.textContent = "This chart could not be drawn: " + error.message;
    place.classList.add("failed");
    console.error(name, error);
  }
})).then(() => { document.body.dataset.drawn = "yes"; });
""".strip()


def page(results: Results, pictures: Sequence[Picture]) -> str:
    """Returns the page as HTML; every text of the results is escaped."""
    library = _library()
    drawn = {picture.name: picture.specification for picture in pictures if picture.specification is not None}
    policy = (
        f"default-src 'none'; script-src {_source(library)} {_source(_DRAW)}; style-src 'unsafe-inline'; img-src data:"
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            "<title>edgebert report</title>",
            f"<style>\n{_STYLE}\n</style>",
            "</head>",
            "<body>",
            "<h1>edgebert report</h1>",
            *_hosts(results),
            "<noscript><p>The charts need JavaScript, which this file brings along.</p></noscript>",
            *_tables(results),
            *(_figure(picture) for picture in pictures if picture.specification is not None),
            *_missing([picture for picture in pictures if picture.specification is None]),
            f'<script type="application/json" id="specifications">{_data(drawn)}</script>',
            f"<script>{library}</script>",
            f"<script>{_DRAW}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _library() -> str:
    """Returns the JavaScript that draws: Vega, Vega-Lite and Vega-Embed, of the version that altair writes for."""
    version = ".".join(load_altair().SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    library: str = load_converter().javascript_bundle(vl_version=version)
    return library.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _source(script: str) -> str:
    """Returns what a content security policy calls a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _data(value: object) -> str:
    """Returns JSON that cannot end the element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


def _hosts(results: Results) -> list[str]:
    """Returns a line for every machine, with the files that were measured there."""
    files: dict[str, list[str]] = {}
    for file, host in results.hosts.items():
        busy = "" if host.load_average is None else f" (load average {host.load_average:g})"
        files.setdefault(_facts(host), []).append(file + busy)
    lines = [f"{', '.join(names)}: {facts}" for facts, names in files.items()]
    if len(files) > 1:
        lines.append("Times of different machines do not compare.")
    return [f'<p class="facts">{escape(line)}</p>' for line in lines]


def _facts(host: Host) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in host.versions.items())
    processors = f"{host.threads} processor{'s' if host.threads != 1 else ''}"
    return f"{host.cpu}, {processors}; {host.os}; Python {host.python}; {versions}"


def _tables(results: Results) -> list[str]:
    parts = []
    if results.evaluated:
        rows = [{**as_row(row), "bundle": row.name} for row in results.evaluated if row.yardstick is None]
        metrics = sorted({row.question for row in results.evaluated})
        parts += [
            "<h2>Evaluated</h2>",
            f'<p class="caption">The metric is {escape("; ".join(metrics))}, with its 95 % interval; FLOPs are the '
            "share of the bundle's own full depth; times in ms of wall time per text.</p>",
            _table(*_with_last("knobs", *evaluation_cells(rows))),
        ]
    if results.timed:
        rows = [{**as_row(row), "bundle": row.name} for row in results.timed]
        parts += [
            "<h2>Timed</h2>",
            '<p class="caption">ms of wall time, per text or per call of random token ids; mean ms is the median of '
            "the repeats' means.</p>",
            _table(*table_cells(rows)),
            *(
                f"<p>{escape(ratio_line(msgspec.structs.asdict(ratio)).removeprefix('- '))}</p>"
                for ratio in results.ratios
            ),
        ]
    return parts


def _with_last(
    heading: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Moves a column to the end, where it may be long."""
    order = sorted(range(len(headings)), key=lambda place: headings[place] == heading)
    return [headings[place] for place in order], [[row[place] for place in order] for row in rows]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    is_number = [all(_is_number(row[place]) for row in rows) for place in range(len(headings))]
    marks = [' class="number"' if number else "" for number in is_number]
    head = "".join(f"<th{mark}>{escape(text)}</th>" for mark, text in zip(marks, headings, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _is_number(text: str) -> bool:
    return not text or text.replace(".", "").replace("-", "").isdecimal()


def _figure(picture: Picture) -> str:
    return (
        f"<h2>{escape(picture.title)}</h2>\n<figure>\n"
        f'<figcaption class="caption">{escape(picture.caption)}</figcaption>\n'
        f'<div class="scroll"><div class="chart" id="chart-{escape(picture.name)}"></div></div>\n</figure>'
    )


def _missing(pictures: Sequence[Picture]) -> list[str]:
    if not pictures:
        return []
    lines = [f"<li>{escape(picture.title)}: <code>{escape(picture.command)}</code></li>" for picture in pictures]
    return ["<h2>Not in these results</h2>", "<ul>", *lines, "</ul>"]
