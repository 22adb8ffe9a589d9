"""Opens a report in headless Chromium: it draws every chart, writes nothing to the console and asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgebert import registry
from edgebert.report import write_report

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
)
PATIENCE_MS = 30_000


@dataclass(frozen=True)
class Visit:
    """What happened when a page was opened: the document as it then was, console messages, and requests' addresses."""

    document: str
    console: list[str]
    requests: list[str]


def _visit(page: Path, folder: Path) -> Visit:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "needs Chromium: apt-get install chromium"
    log = folder / "net.json"
    profile, budget = f"--user-data-dir={folder / 'profile'}", f"--virtual-time-budget={PATIENCE_MS}"
    done = subprocess.run(
        [browser, *FLAGS, profile, budget, f"--log-net-log={log}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    console = re.findall(r"^\[[^]]*:CONSOLE[^]]*\] (.*)$", done.stderr, flags=re.MULTILINE)
    return Visit(done.stdout, console, _requests(json.loads(log.read_text(encoding="utf-8"))))


def _requests(log: dict[str, Any]) -> list[str]:
    """Returns the addresses that pages asked for; the browser's own requests are made by no origin."""
    starts = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in log["events"] if event["type"] == starts and "url" in event.get("params", {})]
    return [params["url"] for params in asked if params["initiator"] != "not an origin"]


class _Marks(HTMLParser):
    """Counts the shapes and texts that are marks of charts, by the chart they are in."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._chart = ""
        self._groups: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if (attributes.get("id") or "").startswith("chart-"):
            self._chart = str(attributes["id"]).removeprefix("chart-")
        if tag == "g":
            self._groups.append("role-mark" in (attributes.get("class") or ""))
        elif tag in ("path", "text") and self._groups and self._groups[-1]:
            self.counts[self._chart] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "g":
            self._groups.pop()


@pytest.fixture(scope="module")
def visit(result_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Visit:
    folder = tmp_path_factory.mktemp("browser")
    return _visit(write_report(result_files, folder / "report.html"), folder)


def test_console_stays_silent(visit: Visit) -> None:
    assert visit.console == []


def test_nothing_is_requested(visit: Visit) -> None:
    assert visit.requests == []


@pytest.mark.parametrize("name", registry.names("edgebert.report"))
def test_chart_is_drawn(visit: Visit, name: str) -> None:
    marks = _Marks()
    marks.feed(visit.document)

    assert 'data-drawn="yes"' in visit.document
    assert marks.counts[name] >= 3


def test_console_and_requests_would_be_noticed(tmp_path: Path) -> None:
    address = "http://127.0.0.1:9/picture.png"
    page = tmp_path / "page.html"
    page.write_text(f'<img src="{address}"><script>console.error("a mistake")</script>', encoding="utf-8")

    noticed = _visit(page, tmp_path)

    assert any("a mistake" in message for message in noticed.console)
    assert address in noticed.requests


def test_only_the_pages_own_scripts_run(result_files: list[Path], tmp_path: Path) -> None:
    page = write_report(result_files[2:], tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace("<h2>", "<script>document.title = 'taken over'</script><h2>", 1), encoding="utf-8")

    visited = _visit(page, tmp_path)

    assert "<title>edgebert report</title>" in visited.document
    assert any("Content Security Policy" in message for message in visited.console)
