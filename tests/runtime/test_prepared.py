import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgebert.bundle import Bundle, open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.derive import derive
from edgebert.describe import describe_bundle, describe_machine
from edgebert.errors import BundleError, ConfigError, EdgeBertError
from edgebert.runtime import loading
from edgebert.runtime import prepared as prepared_module
from edgebert.runtime.graphs import Graph
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.prepared import (
    check_prepared,
    find_prepared,
    prepare_bundle,
    prepared_folder,
    remove_prepared,
)
from edgebert.verify import verify_bundle

TEXTS = ["a gripping film", "two hours of boring plot , that i will not get back", "good"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EDGEBERT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for path in (tmp_path / "cache").rglob("*"):
        path.chmod(0o700)


@pytest.fixture
def bundle(dact_bundle: Path) -> Bundle:
    return open_bundle(dact_bundle)


def _beside(folder: Path) -> list[Path]:
    """Returns what lies beside a folder, but for locks."""
    return [path for path in folder.parent.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("name", ["plain_bundle", "dact_bundle"])
def test_prepared_graphs_answer_bit_by_bit_the_same(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    with EdgeModel.from_pretrained(path) as model:
        assert model.prepared is None
        expected = model.predict_proba(TEXTS)

    with EdgeModel.from_pretrained(path, prepare=True) as model:
        assert model.prepared is not None
        assert set(model.prepared.graphs) == set(model.graphs)
        assert np.array_equal(model.predict_proba(TEXTS), expected)


def test_what_is_prepared_is_used_from_then_on_without_reading_the_graphs(bundle: Bundle) -> None:
    prepare_bundle(bundle)
    read: list[str] = []

    class Watched(Bundle):
        def read(self, name: str) -> bytes:
            read.append(name)
            return super().read(name)

    with EdgeModel(Watched(bundle.path, bundle.manifest)) as model:
        assert model.prepared is not None
        model(TEXTS)

    assert not [name for name in read if name.endswith(".onnx")]


def test_a_tuned_bundle_keeps_it_and_another_model_has_its_own(
    bundle: Bundle, plain_bundle: Path, tmp_path: Path
) -> None:
    prepared = prepare_bundle(bundle)
    points = {**bundle.manifest.operating_points, "fast": OperatingPoint(policy="fixed", knobs={"layer": 1})}
    tuned = derive(bundle, tmp_path / "tuned", changes={"operating_points": points})

    assert find_prepared(tuned) == prepared
    assert find_prepared(open_bundle(plain_bundle)) is None


def test_preparing_again_changes_nothing_unless_forced(bundle: Bundle) -> None:
    first = prepare_bundle(bundle)
    assert prepare_bundle(bundle) == first

    again = prepare_bundle(bundle, force=True)

    assert again.folder == first.folder
    assert again != first  # its files are new
    assert _beside(first.folder) == [first.folder]  # and no old ones are left


@pytest.mark.parametrize("change", ["size", "time", "missing", "facts", "elsewhere", "no facts"])
def test_what_is_stale_is_not_used_and_is_prepared_again(bundle: Bundle, change: str) -> None:
    prepared = prepare_bundle(bundle)
    weights = max(prepared.folder.glob("*.bin"), key=lambda path: path.stat().st_size)
    if change == "size":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif change == "time":
        os.utime(weights, ns=(0, 0))
    elif change == "missing":
        weights.unlink()
    elif change == "facts":
        (prepared.folder / "edgebert.json").write_text("{}")
    elif change == "elsewhere":
        facts, name = prepared.folder / "edgebert.json", next(iter(prepared.facts.graphs.values()))
        shutil.copy2(prepared.folder / name, prepared.folder.parent / name)
        facts.write_text(facts.read_text().replace(f'"{name}"', f'"../{name}"'))
    else:
        (prepared.folder / "edgebert.json").unlink()

    assert find_prepared(bundle) is None
    with EdgeModel(bundle) as model:
        assert model.prepared is None
        expected = model.predict(TEXTS)
    with EdgeModel(bundle, prepare=True) as model:
        assert model.prepared is not None
        assert model.predict(TEXTS) == expected


def test_another_onnxruntime_or_processor_has_its_own(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = prepared_folder(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "0.0.1")
        other_version = prepared_folder(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(prepared_module, "cpu_features", lambda: frozenset({"sse2"}))
        other_processor = prepared_folder(bundle)

    assert len({mine, other_version, other_processor}) == 3


def test_check_hashes_what_size_and_time_do_not_show(bundle: Bundle) -> None:
    prepared = prepare_bundle(bundle)
    check_prepared(prepared)
    weights = max(prepared.folder.glob("*.bin"), key=lambda path: path.stat().st_size)
    facts = weights.stat()
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    found = find_prepared(bundle)
    assert found is not None
    with pytest.raises(BundleError, match=rf"^{weights}: changed since it was prepared .* BUNDLE --force"):
        check_prepared(found)


@pytest.mark.parametrize("what", ["folder", "entry", "file", "link"])
def test_what_others_could_change_is_refused(bundle: Bundle, what: str, tmp_path: Path) -> None:
    prepared = prepare_bundle(bundle)
    if what == "folder":
        prepared.folder.parent.chmod(0o755)
    elif what == "entry":
        prepared.folder.chmod(0o777)
    elif what == "file":
        next(prepared.folder.glob("*.bin")).chmod(0o666)
    else:
        prepared.folder.rename(tmp_path / "elsewhere")
        prepared.folder.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleError, match=r": expected a (folder|file) of this user's own that nobody else can "):
        EdgeModel(bundle, prepare=True)
    with pytest.warns(RuntimeWarning, match=r"^prepared graphs are not used: .* this user's own that nobody"):
        model = EdgeModel(bundle)
    assert model.prepared is None
    assert len(model.predict(TEXTS)) == 3
    with pytest.warns(RuntimeWarning, match=r"^prepared graphs are not used: "):
        assert describe_bundle(bundle.path)["prepared"] is None


def test_what_somebody_else_owns_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_bundle(bundle)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)

    with pytest.raises(BundleError, match=rf"owner {me}; remove it, or say where with EDGEBERT_CACHE"):
        find_prepared(bundle)


def test_it_is_used_where_nothing_can_be_written(bundle: Bundle) -> None:
    prepared = prepare_bundle(bundle)
    for path in [*prepared.folder.iterdir(), prepared.folder, prepared.folder.parent]:
        path.chmod(0o500 if path.is_dir() else 0o400)

    with EdgeModel(bundle) as model:
        assert model.prepared is not None
        assert len(model.predict(TEXTS)) == 3


def test_a_cache_that_cannot_be_made(bundle: Bundle, cache: Path) -> None:
    cache.write_text("a file")

    with pytest.raises(EdgeBertError, match=r"prepared: cannot be made: .*; say where to prepare with EDGEBERT_CACHE"):
        prepare_bundle(bundle)

    assert cache.read_text() == "a file"
    with EdgeModel(bundle) as model:
        assert model.prepared is None


def test_a_failure_on_the_way_leaves_what_was_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare_bundle(bundle)

    def fail(path: Path) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_module, "_sha256", fail)
        with pytest.raises(EdgeBertError, match="No space left on device; what was there is untouched"):
            prepare_bundle(bundle, force=True)

    assert find_prepared(bundle) == before
    assert _beside(before.folder) == [before.folder]


def test_two_processes_at_once_do_no_harm(bundle: Bundle) -> None:
    program = (
        "import sys; from edgebert import EdgeModel\n"
        "with EdgeModel.from_pretrained(sys.argv[1], prepare=True, threads=1) as model:\n"
        "    assert model.prepared is not None\n"
        "    print(*model.predict(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, str(bundle.path), *TEXTS]

    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(3)))

    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    assert len({run.stdout for run in runs}) == 1
    prepared = find_prepared(bundle)
    assert prepared is not None
    check_prepared(prepared)
    assert _beside(prepared.folder) == [prepared.folder]


def test_the_cache_is_private(bundle: Bundle) -> None:
    prepared = prepare_bundle(bundle)

    assert stat.S_IMODE(prepared.folder.parent.stat().st_mode) == 0o700


def test_a_damaged_bundle_is_not_prepared(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "damaged")
    layer = tmp_path / "damaged" / "graphs" / "layer_01.onnx"
    data = bytearray(layer.read_bytes())
    data[len(data) // 2] ^= 1
    layer.write_bytes(data)
    damaged = open_bundle(tmp_path / "damaged")

    with pytest.raises(BundleError, match=r"layer_01\.onnx: changed since the bundle was made"):
        prepare_bundle(damaged)

    assert find_prepared(damaged) is None


def test_preparing_goes_with_the_cpu_provider_and_our_own_options(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"^prepare: goes with the provider cpu"):
        EdgeModel(bundle, prepare=True, session_options=onnxruntime.SessionOptions())


def test_what_is_removed_while_a_model_is_open_is_read_from_the_bundle(bundle: Bundle) -> None:
    prepared = prepare_bundle(bundle)
    with EdgeModel(bundle) as model:
        expected = model.predict_proba(TEXTS)
    with EdgeModel(bundle, memory_budget_mb=100) as model:
        assert model.prepared is not None
        shutil.rmtree(prepared.folder)

        assert np.array_equal(model.predict_proba(TEXTS), expected)


@pytest.mark.parametrize("is_prepared_anew", [True, False])
def test_what_is_prepared_anew_while_it_is_opened_is_read_from_the_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, is_prepared_anew: bool
) -> None:
    prepare_bundle(bundle)
    make_graph, refused = loading.make_graph, []

    def refuse_what_is_prepared(model: bytes | Path, **options: Any) -> Graph:
        if isinstance(model, Path):
            refused.append(model)
            if is_prepared_anew:
                os.utime(model, (1, 1))
            raise BundleError("Opened external data file escapes model directory")
        return make_graph(model, **options)

    monkeypatch.setattr(loading, "make_graph", refuse_what_is_prepared)

    if is_prepared_anew:
        with EdgeModel(bundle, threads=1) as model:
            assert model.predict(["a good film"])
        assert len(refused) > 1
    else:
        with pytest.raises(BundleError, match="escapes"):
            EdgeModel(bundle, threads=1)


def test_verify_does_not_look_at_what_is_prepared(bundle: Bundle, dact_checkpoint: Path) -> None:
    prepared = prepare_bundle(bundle)
    for weights in prepared.folder.glob("*.bin"):
        found = weights.stat()
        weights.write_bytes(bytes(found.st_size))
        os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns))

    assert verify_bundle(bundle.path, reference=str(dact_checkpoint), samples=8)["parity"]["differing_decisions"] == 0


def test_removing(bundle: Bundle) -> None:
    assert not remove_prepared(bundle)
    prepared = prepare_bundle(bundle)

    assert remove_prepared(bundle)

    assert not list(prepared.folder.parent.iterdir())
    assert find_prepared(bundle) is None


def test_no_home_to_prepare_in(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGEBERT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)

    with pytest.raises(BundleError, match="no home folder to prepare in; say where with EDGEBERT_CACHE"):
        EdgeModel(bundle, prepare=True)
    with EdgeModel(bundle) as model:  # without a warning: nobody asked for prepared graphs
        assert model.prepared is None
    monkeypatch.setattr("edgebert.describe.provider_states", dict)  # OpenVINO itself wants a home
    assert describe_machine()["cache"].startswith("nowhere: there is no home folder")


def test_a_lock_that_cannot_be_made(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(EdgeBertError, match=r"cannot write .*\.lock beside it: Permission denied"):
        prepare_bundle(bundle)


def test_a_budget_counts_what_is_laid_out(bundle: Bundle) -> None:
    prepared = prepare_bundle(bundle)

    for path in prepared.graphs:
        size = bundle.manifest.files[path].bytes
        assert size <= prepared.laid_out_bytes(path, size) < prepared.size_bytes
