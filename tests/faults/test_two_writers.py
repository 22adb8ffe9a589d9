"""Two processes that write the same at once: the result is wholly one of the two, and who could not write says so."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.bundle import open_bundle
from edgebert.bundle.publish import publish
from edgebert.checkpoint import load_checkpoint
from edgebert.errors import BundleError, ConfigError
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.prepared import FOLDER_VARIABLE, check_prepared, find_prepared

Record = Callable[[str, object], None]
Rounds = Callable[[int, int], int]

REFUSALS = ("another process is writing it", "exists already; use --force", "somebody else made it meanwhile")
SHORT = {"quantize": (3, 60), "single": (2, 40)}
SLOW = {"train": (0, 8), "report": (0, 8)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives tests the names of the commands; those that take seconds are left out of make test."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [*SHORT, *(SLOW if metafunc.config.getoption("full") else ())])


def _variants(arguments: list[str], name: str, two_results: list[Path]) -> list[list[str]]:
    """Returns the arguments of two commands that write different things to the same place."""
    if name == "report":
        return [["report", str(result), *arguments[2:]] for result in two_results]
    more = {
        "quantize": ([], ["--per-tensor"]),
        "single": ([], ["--point", "confidence"]),
        "train": (["--seed", "1"], ["--seed", "2"]),
    }
    return [[*arguments, *variant] for variant in more[name]]


@pytest.mark.parametrize("force", [True, False])
def test_two_at_once(
    forks: Any,
    make_writer: Any,
    two_results: list[Path],
    tmp_path: Path,
    rounds: Rounds,
    record_property: Record,
    name: str,
    force: bool,
) -> None:
    writer = make_writer(name, tmp_path / name)
    variants = _variants(writer.arguments, name, two_results)
    possible, seconds = [], []
    for arguments in variants:
        _remove(writer)
        (ended,) = forks.run(writer.job(arguments=arguments))
        assert ended.code == 0, ended.messages
        possible.append(writer.contents())
        seconds.append(ended.seconds)
    assert possible[0] != possible[1]
    rng, found = np.random.default_rng(0), Counter[str]()
    for _ in range(rounds(*{**SHORT, **SLOW}[name])):
        if force:
            writer.reset()
        else:
            _remove(writer)
        delay_s = rng.uniform(0, 0.3) * min(seconds)
        both = forks.run(
            *[
                writer.job(
                    arguments=[argument for argument in arguments if force or argument != "--force"],
                    starts_after_s=number * delay_s,
                )
                for number, arguments in enumerate(variants)
            ]
        )
        written = [number for number, ended in enumerate(both) if ended.code == 0]
        assert written, [ended.messages for ended in both]
        assert writer.contents() in [possible[number] for number in written]
        for ended in both:
            if ended.code:
                assert ended.code == 1
                assert any(refusal in ended.error for refusal in REFUSALS), ended.error
        if not force:
            assert len(written) == 1
        assert writer.leftovers() == []
        found[f"{len(written)} wrote"] += 1
    record_property(f"two at once, {name}, {'with' if force else 'without'} --force", str(dict(found)))


def _remove(writer: Any) -> None:
    for result in writer.results:
        shutil.rmtree(result) if result.is_dir() else result.unlink(missing_ok=True)


def test_two_prepare_at_once(
    forks: Any,
    make_writer: Any,
    tmp_path: Path,
    dact_bundle: Path,
    rounds: Rounds,
    record_property: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = make_writer("prepare", tmp_path / "prepare")
    monkeypatch.setenv(FOLDER_VARIABLE, writer.environment[FOLDER_VARIABLE])
    count = rounds(3, 60)
    for number in range(count):
        if number % 2:
            _remove(writer)
        both = forks.run(*[writer.job(arguments=writer.arguments[: 3 - number % 2]) for _ in range(2)])
        assert [ended.code for ended in both] == [0, 0], [ended.messages for ended in both]
        prepared = find_prepared(open_bundle(dact_bundle))
        assert prepared is not None
        check_prepared(prepared)
        assert writer.leftovers() == []
    record_property("two prepare at once", f"{count} of {count} whole")


def test_two_tunings_at_once_lose_no_point(
    forks: Any, make_writer: Any, tmp_path: Path, rounds: Rounds, record_property: Record
) -> None:
    """In place, where each reads the bundle, takes its time, and writes it."""
    writer = make_writer("tune", tmp_path / "tune")
    (target,), found = writer.results, Counter[str]()
    place = writer.arguments.index("--name") + 1
    for _ in range(rounds(1, 20)):
        writer.reset()
        names = ["first", "second"]
        jobs = [
            writer.job(arguments=[*writer.arguments[:place], name, *writer.arguments[place + 1 :]]) for name in names
        ]
        both = forks.run(*jobs)
        written = {name for name, ended in zip(names, both, strict=True) if ended.code == 0}
        for ended in both:
            if ended.code:
                assert "another process has changed it meanwhile" in ended.error or REFUSALS[0] in ended.error
        bundle = open_bundle(target)
        assert bundle.check_files() == []
        assert written
        assert {"first", "second"} & set(bundle.manifest.operating_points) == written
        found[f"{len(written)} wrote"] += 1
    record_property("two tunings at once", str(dict(found)))


def test_a_bundle_replaced_while_it_is_open_is_never_mixed(
    plain_bundle: Path, dact_bundle: Path, tmp_path: Path
) -> None:
    """What is loaded answers as before; what would be loaded of the new one is refused."""
    target = shutil.copytree(dact_bundle, tmp_path / "bundle")
    texts = ["a gripping film"]
    with EdgeModel.from_pretrained(target, prepare=False) as whole:
        before = whole.predict_proba(texts)
        with EdgeModel.from_pretrained(target, prepare=False, memory_budget_mb=100.0) as late:
            with publish(target, force=True) as partial:
                shutil.copytree(plain_bundle, partial, dirs_exist_ok=True)
            with pytest.raises(BundleError, match=r"graphs/\w+\.onnx: "):
                late.predict_proba(texts)
        np.testing.assert_array_equal(whole.predict_proba(texts), before)
        with pytest.raises(BundleError):
            whole.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_checkpoint_replaced_while_it_is_read_is_refused(
    dact_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shutil.copytree(dact_checkpoint, tmp_path / "checkpoint")
    import safetensors.torch

    load_file = safetensors.torch.load_file

    def replace_and_load(path: Path) -> Any:
        with publish(target, force=True) as partial:
            shutil.copytree(dact_checkpoint, partial, dirs_exist_ok=True)
        return load_file(path)

    monkeypatch.setattr(safetensors.torch, "load_file", replace_and_load)

    with pytest.raises(ConfigError, match="checkpoint: was replaced while it was read; try again"):
        load_checkpoint(target)
