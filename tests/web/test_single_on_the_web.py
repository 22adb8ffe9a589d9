"""Runs single files with onnxruntime-web, in Node and in headless Chromium: the split runtime's labels and exits."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import export_single
from edgebert.bundle.manifest import OperatingPoint
from edgebert.export import export_model
from edgebert.runtime.model import EdgeModel

HERE = Path(__file__).parent
ORT = HERE / "node_modules" / "onnxruntime-web" / "dist"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
)
PATIENCE_S = 240
ROWS = 100

# Fixture or method, and settings of the file's inputs.
CASES: list[tuple[str, list[dict[str, Any]]]] = [
    ("dact_bundle", [{"slack": 0.0}, {"slack": 0.4}, {"slack": 9.0}]),
    ("dpbert", [{"delta": 0.0}, {"delta": 0.5}, {"delta": 0.6}]),
    ("geep_bundle", [{"offset": 0.0, "gain": 1.0}, {"offset": -1.0, "gain": 1.0}]),
    ("width_bundle", [{"width": 0.5}, {"width": 0.25}]),
    ("token_bundle", [{"lengths": "0.6,0.3,0.2"}, {"lengths": "0.9,0.9,0.5"}]),
]
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def dpbert_bundle(save_tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dpbert` bundle whose rows leave out different layers."""
    points = {"default": OperatingPoint(policy="bypass", knobs={"delta": 0.5})}
    return export_model(
        save_tiny_checkpoint({"name": "dpbert"}, points), tmp_path_factory.mktemp("web") / "dpbert"
    ).path


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0].removesuffix("_bundle"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """A folder with a single file and what it is to answer, and what the split runtime answers."""
    name, settings = request.param
    bundle = request.getfixturevalue(name if name.endswith("_bundle") else f"{name}_bundle")
    folder = tmp_path_factory.mktemp("job")
    export_single(bundle, folder / "model.onnx", knobs="required")
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 100, tokens).tolist() for tokens in rng.integers(3, 48, ROWS)]
    job = {"rows": rows, "settings": [{knob: _numbers(value) for knob, value in s.items()} for s in settings]}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    expected = []
    with EdgeModel.from_pretrained(bundle, threads=1) as model:
        for setting in settings:
            model.set_policy(**setting)
            expected += [model.forward(np.array(ids)) for ids in rows]
    assert len({(f.exit_layer[0], *f.path[0]) for f in expected}) > 1 or name in ("width_bundle", "token_bundle")
    return folder, expected


def _numbers(value: float | str) -> list[float]:
    return [float(part) for part in value.split(",")] if isinstance(value, str) else [value]


def _check(found: Found, expected: list[Any]) -> None:
    assert [answer["exitLayer"] for answer in found] == [forward.exit_layer[0] for forward in expected]
    assert [answer["path"] for answer in found] == [forward.path[0].astype(int).tolist() for forward in expected]
    logits = np.array([answer["logits"] for answer in found])
    split = np.concatenate([forward.logits for forward in expected])
    assert logits.argmax(axis=1).tolist() == split.argmax(axis=1).tolist()
    assert np.abs(logits - split).max() <= 1e-3


def test_single_file_in_node(case: tuple[Path, Found]) -> None:
    folder, expected = case
    node = shutil.which("node")
    assert node, "needs Node: apt-get install nodejs"

    done = subprocess.run(
        [node, HERE / "answer_in_node.mjs", folder / "model.onnx", folder / "job.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )

    assert done.returncode == 0, done.stderr
    _check(json.loads(done.stdout), expected)


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what is posted."""

    def __init__(self, *arguments: Any, posted: queue.Queue[bytes], **options: Any) -> None:
        self.posted = posted
        super().__init__(*arguments, **options)

    def do_POST(self) -> None:
        self.posted.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


def test_single_file_in_chromium(case: tuple[Path, Found], tmp_path: Path) -> None:
    folder, expected = case
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "needs Chromium: apt-get install chromium"
    site = shutil.copytree(folder, tmp_path / "site")
    for name in ("answer_in_browser.html", "answer_rows.mjs"):
        shutil.copy(HERE / name, site)
    (site / "ort").mkdir()
    for path in ORT.glob("ort*wasm*.*js"):
        shutil.copy(path, site / "ort")
    shutil.copy(ORT / "ort-wasm-simd-threaded.wasm", site / "ort")
    posted: queue.Queue[bytes] = queue.Queue()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(site), posted=posted)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_port}/answer_in_browser.html"
        with subprocess.Popen(
            [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0", page],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                found = json.loads(posted.get(timeout=PATIENCE_S))
            finally:
                process.terminate()
        server.shutdown()

    assert "error" not in found, found
    _check(found["answers"], expected)
