"""The pictures of results, in one page that needs no network: one picture a file, found by its name.

A picture's file defines `TITLE`, `CAPTION` (one sentence), `COMMAND` (which command gives what it shows), `PLACE`
(lower is further up) and `chart(results)`, an altair chart or None where the results have nothing for it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgebert import registry
from edgebert.arguments import one_or_more
from edgebert.errors import EdgeBertError
from edgebert.output import Reporter
from edgebert.report._drawing import load_altair, load_converter, specification
from edgebert.report._page import Picture, page
from edgebert.report._results import read_results
from edgebert.write import check_file, check_folder, write_files

_SVG_WIDTH = 680
_NUMBERED = re.compile(r"\b(clip|gradient_)(\d+)\b")


def write_report(
    results: str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]],
    output: str | Path,
    *,
    svg: str | Path | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Writes the pictures of results as one HTML file, which opens without a network.

    Args:
        results: Files that `edgebert eval --json` and `edgebert bench --json` printed, what `evaluate_bundle` and
            `bench_bundles` returned, or one of them.
        output: The HTML file to write.
        svg: A folder for the same charts as SVG files; None writes none.
        force: Replace files that are there.
        reporter: Where messages go.

    Returns:
        The HTML file.

    Raises:
        ConfigError: A file to write is one of the results, or lies inside a bundle.
        DataError: A result cannot be read.
        EdgeBertError: A file cannot be written, or is there already.
        MissingExtraError: altair or vl-convert is not installed.
    """
    given = [results] if isinstance(results, str | Path | Mapping) else results
    files = [result for result in given if not isinstance(result, Mapping)]
    target, folder = Path(output), None if svg is None else Path(svg)
    pictures = sorted((registry.load(__name__, name) for name in registry.names(__name__)), key=lambda one: one.PLACE)
    check_file(target, force=force, sources=one_or_more("results", files))
    if folder is not None:
        check_folder(folder, [_svg_name(picture) for picture in pictures], force=force, sources=files)
    load_altair()
    load_converter()
    read = read_results(given)
    drawn = [(picture, picture.chart(read)) for picture in pictures]
    specs = {picture: specification(chart) for picture, chart in drawn if chart is not None}
    shown = [
        Picture(
            name=picture.__name__.rpartition(".")[2],
            title=picture.TITLE,
            caption=picture.CAPTION,
            command=picture.COMMAND,
            specification=specs.get(picture),
        )
        for picture in pictures
    ]
    made: dict[Path, str | bytes] = {target: page(read, shown)}
    if folder is not None:
        made.update({folder / _svg_name(picture): _svg(spec) for picture, spec in specs.items()})
    with _made(folder):
        write_files(made, force=force)
    (reporter or Reporter()).say(f"{target}: {len(specs)} charts, {target.stat().st_size / 1e6:.2f} MB")
    return target


@contextlib.contextmanager
def _made(folder: Path | None) -> Iterator[None]:
    """Makes a folder, and removes it again if it is empty after an error."""
    is_new = folder is not None and not folder.exists()
    try:
        if folder is not None:
            folder.mkdir(exist_ok=True)
        yield
    except OSError as error:
        raise EdgeBertError(f"{folder}: cannot be made: {error.strerror}.") from error
    except BaseException:
        if folder is not None and is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _svg_name(picture: ModuleType) -> str:
    return f"{picture.__name__.rpartition('.')[2]}.svg"


def _svg(spec: dict[str, Any]) -> str:
    width = {"width": _SVG_WIDTH} if spec.get("width") == "container" else {}
    svg: str = load_converter().vegalite_to_svg(json.dumps({**spec, **width}), allowed_base_urls=[])
    # The converter numbers these over all the charts it ever drew; the same chart is to give the same bytes.
    numbers = {name: number for number, name in enumerate(dict.fromkeys(_NUMBERED.findall(svg)), start=1)}
    return _NUMBERED.sub(lambda match: f"{match[1]}{numbers[match.groups()]}", svg)
