import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgebert import registry
from edgebert.errors import DataError, EdgeBertError, MissingExtraError
from edgebert.report import _page, write_report
from edgebert.report._page import Picture, page
from edgebert.report._results import Host, read_results

PICTURES = registry.names("edgebert.report")


class _Elements(HTMLParser):
    """Collects the elements of a page, with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _parse(html: str) -> _Elements:
    parser = _Elements()
    parser.feed(html)
    return parser


@pytest.fixture(scope="module")
def written(result_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(result_files, folder / "report.html", svg=folder / "charts")


def test_page_has_every_picture_of_real_results(written: Path) -> None:
    elements = _parse(written.read_text(encoding="utf-8"))

    places = {str(attributes["id"]) for _, attributes in elements.elements if "id" in attributes}
    assert places == {"specifications", *(f"chart-{name}" for name in PICTURES)}
    assert "Not in these results" not in elements.text
    assert "faster in wall time" in elements.text or "no winner" in elements.text


def test_page_is_small_and_asks_for_nothing(written: Path) -> None:
    html = written.read_text(encoding="utf-8")

    elements = _parse(html)

    assert written.stat().st_size < 1_500_000
    fetched = [
        value for _, attributes in elements.elements for name in ("src", "href") if (value := attributes.get(name))
    ]
    assert fetched == ["data:,"]
    assert not re.search(r"@import|url\(", _page._STYLE)
    (policy,) = [a["content"] for tag, a in elements.elements if tag == "meta" and "http-equiv" in a]
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in str(policy)


def test_svg_of_every_chart(written: Path) -> None:
    files = sorted((written.parent / "charts").iterdir())

    assert [file.name for file in files] == [f"{name}.svg" for name in PICTURES]
    for file in files:
        marks = ElementTree.parse(file).getroot().iter("{http://www.w3.org/2000/svg}path")
        assert len(list(marks)) > 5


def test_pictures_that_results_lack_are_named_with_their_command(tmp_path: Path, result_files: list[Path]) -> None:
    html = write_report(result_files[2:], tmp_path / "timed.html").read_text(encoding="utf-8")

    assert "Not in these results" in html
    assert "<li>Metric against computation: <code>edgebert eval BUNDLE... --data FILE" in html
    assert 'id="chart-steps"' in html
    assert 'id="chart-pareto"' not in html


def test_texts_of_results_are_escaped(tmp_path: Path, result_files: list[Path]) -> None:
    result = json.loads(result_files[1].read_text(encoding="utf-8"))
    result["data"] = ["</script><script>alert(1)</script>.tsv"]
    result["host"]["cpu"] = "<img src=http://example.org/x>"
    for row in result["rows"]:
        row["bundle"] = "<script>alert(2)<!--.bundle"
        row["policy"] = "</style></script>"
        for sentence in row.get("maps", {}).get("tokens", []):
            sentence[0][0] = "</script>"
    hostile = tmp_path / "<b>hostile.json"
    hostile.write_text(json.dumps(result), encoding="utf-8")

    html = write_report([hostile], tmp_path / "report.html").read_text(encoding="utf-8")

    tags = [tag for tag, _ in _parse(html).elements]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert "b" not in tags
    assert html.count("</script") == 3
    assert "&lt;script&gt;alert(2)" in html


def test_page_of_an_int8_bundle_says_so(tmp_path: Path, result_files: list[Path]) -> None:
    result = json.loads(result_files[0].read_text(encoding="utf-8"))
    int8 = {**result["rows"][0], "bundle": "dact.int8", "precision": "int8", "fp32_agreement": 0.99, "size_mb": 1.0}
    result["rows"].append(int8)
    path = tmp_path / "both.json"
    path.write_text(json.dumps(result), encoding="utf-8")

    elements = _parse(write_report([path], tmp_path / "report.html").read_text(encoding="utf-8"))

    specifications = json.loads(elements.text[elements.text.index('{"pareto"') :].split("\n")[0])
    points = json.dumps(specifications["pareto"])
    assert '"precision": "int8"' in points
    assert "dact.int8, int8" in json.dumps(specifications["memory"])
    assert "as fp32" in elements.text


def test_same_results_give_the_same_page(written: Path, result_files: list[Path], tmp_path: Path) -> None:
    again = write_report(result_files, tmp_path / "report.html")

    assert again.read_bytes() == written.read_bytes()


def test_results_are_taken_as_they_were_returned(written: Path, result_files: list[Path], tmp_path: Path) -> None:
    returned = [json.loads(path.read_text(encoding="utf-8")) for path in result_files]

    made = write_report(returned, tmp_path / "report.html", svg=tmp_path / "charts")

    charts = {path.name: path.read_bytes() for path in (written.parent / "charts").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "charts").iterdir()} == charts
    assert "result 1" in made.read_text(encoding="utf-8")
    write_report(returned[0], tmp_path / "one.html")


@pytest.mark.parametrize("given", [{"rows": []}, {"schema": object()}])
def test_what_is_no_result_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^result 1: expected "):
        write_report(given, tmp_path / "report.html")


def test_same_results_give_the_same_charts(result_files: list[Path], tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_report(result_files[:1], tmp_path / f"{name}.html", svg=tmp_path / name)

    charts = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert any("clip-path" in (tmp_path / "first" / name).read_text() for name in charts)
    for name in charts:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_machines_are_told_once(evaluated: Callable[..., Any], combine: Callable[..., Any]) -> None:
    host = Host("a processor", 1, "Linux", "3.11", 0.5, {"numpy": "2"})
    results = combine([evaluated()])
    results.hosts.update({"a.json": host, "b.json": host})

    html = page(results, [Picture(name="x", title="X", caption="", command="edgebert eval", specification=None)])

    facts = "a processor, 1 processor; Linux; Python 3.11; numpy 2"
    assert f"a.json (load average 0.5), b.json (load average 0.5): {facts}" in html


def test_machines_that_differ_are_told_apart(evaluated: Callable[..., Any], combine: Callable[..., Any]) -> None:
    results = combine([evaluated()])
    results.hosts.update({name: Host(name, 2, "Linux", "3.11") for name in ("slow", "quick")})

    html = page(results, [])

    assert "slow: slow, 2 processors; Linux" in html
    assert "Times of different machines do not compare." in html


@pytest.mark.parametrize("force", [False, True])
def test_file_that_is_there(result_files: list[Path], tmp_path: Path, force: bool) -> None:
    target = tmp_path / "report.html"
    target.write_text("mine", encoding="utf-8")

    if force:
        assert write_report(result_files[2:], target, force=True).read_text(encoding="utf-8") != "mine"
    else:
        with pytest.raises(EdgeBertError, match=r"report\.html: exists already; use --force to replace it\."):
            write_report(result_files[2:], target)
        assert target.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_svg_that_is_there(written: Path, tmp_path: Path, result_files: list[Path]) -> None:
    with pytest.raises(EdgeBertError, match=r"pareto\.svg: exists already"):
        write_report(result_files, tmp_path / "new.html", svg=written.parent / "charts")

    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize(
    ("output", "svg", "message"),
    [
        ("none/report.html", None, "its folder .*none does not exist"),
        ("folder", None, "exists and is not a file"),
        ("report.html", "none/charts", "its folder .*none does not exist"),
        ("report.html", "file", "exists and is not a folder"),
    ],
)
def test_output_is_checked_before_results_are_read(tmp_path: Path, output: str, svg: str | None, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()

    with pytest.raises(EdgeBertError, match=message):
        write_report([tmp_path / "no.json"], tmp_path / output, svg=svg and tmp_path / svg)


@pytest.mark.parametrize(("module", "package"), [("altair", "altair"), ("vl_convert", "vl_convert")])
def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtraError, match=rf"edgebert report needs {package}.*edgebert\[report\]"):
        write_report([tmp_path / "no.json"], tmp_path / "report.html")


def test_results_read_as_they_were_measured(result_files: list[Path]) -> None:
    results = read_results(result_files)

    assert [row.method for row in results.deployed] == ["dact_bert", "plain"]
    assert [row.method for row in results.models] == ["dact_bert", "plain", "dynamic_tinybert", "tbert"]
    assert {row.yardstick for row in results.evaluated} == {None, "static-frontier"}
    assert results.ratios[0].pairs
