"""No configuration makes a command fail in another way than by one line that names the file, the key and the line."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgebert import registry
from edgebert.checkpoint import load_checkpoint
from edgebert.config import RunConfig, decode, parse_setting, read_config
from edgebert.encoders._checkpoint import build_encoder
from edgebert.errors import ConfigError, DataError
from edgebert.report._results import read_results
from edgebert.tasks import load_task, task_settings
from tests.faults._configs import VALUES, WHOLE, changed, damaged, leaves, without
from tests.faults._judge import answer_or_refusal, guarded
from tests.faults._results import results

Rounds = Callable[[int, int], int]
Record = Callable[[str, object], None]
Invoke = Callable[..., tuple[int, str, str]]

SHIPPED = sorted((Path(__file__).parents[2] / "export_configs").glob("*.yaml"))


def _read(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Reads a configuration as training does, the settings of method and task with it."""
    config = read_config(path, overrides)
    method = registry.load("edgebert.methods", config.method_name)
    decode(config.method_settings(), method.Config, where=str(path), prefix="method.")
    task_settings(load_task(config.train.task), config.train.task_settings, where=str(path))
    return config


def test_every_value_of_every_shipped_configuration_changed(
    tmp_path: Path, rounds: Rounds, record_property: Record
) -> None:
    cases = [
        (file, path, value)
        for file in SHIPPED
        for path in leaves(yaml.safe_load(file.read_text(encoding="utf-8")))
        for value in (*VALUES, None)
        if path or value is not None
    ]
    rng, seen = random.Random(20), Counter[str]()
    tried = cases if len(cases) < (count := rounds(150, 10_000)) else rng.sample(cases, count)
    target = tmp_path / "run.yaml"
    for file, path, value in tried:
        text = file.read_text(encoding="utf-8")
        made = without(text, path) if value is None else changed(text, path, value)
        target.write_text(made, encoding="utf-8")
        name = f"{file.name}: {'.'.join(map(str, path))}: {value!r:.40}"
        with guarded():
            config, error = answer_or_refusal(name, lambda: _read(target))
        assert error is None or str(error).startswith((f"{target}:", "unknown ")), (name, error)
        assert error is None or error.exit_code == 2, name
        seen["refused" if config is None else "read"] += 1
    record_property("configurations", f"{seen['refused']} of {len(tried)} refused, {seen['read']} read")


def test_any_damaged_configuration_is_read_or_refused(tmp_path: Path, rounds: Rounds, record_property: Record) -> None:
    rng, refused, count = random.Random(21), 0, rounds(150, 4000)
    target = tmp_path / "run.yaml"
    for number in range(count):
        data = rng.choice(SHIPPED).read_bytes()
        for _ in range(rng.randint(1, 3)):
            data = damaged(rng, data)
        target.write_bytes(data)
        with guarded():
            _, error = answer_or_refusal(f"damaged {number}", lambda: _read(target))
        refused += error is not None
    record_property("configurations", f"{refused} of {count} damaged ones refused, the others read")


@pytest.mark.parametrize("name", WHOLE)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, name: str) -> None:
    target = tmp_path / "run.yaml"
    target.write_bytes(WHOLE[name])

    with guarded():
        _, error = answer_or_refusal(name, lambda: _read(target))

    assert isinstance(error, ConfigError)
    assert str(error).startswith((f"{target}:", "unknown method 'aaa"))


def test_any_setting_on_the_command_line_is_read_or_refused(
    tmp_path: Path, rounds: Rounds, record_property: Record
) -> None:
    rng, count, refused = random.Random(22), rounds(200, 3000), 0
    keys = ("train.batch_size", "train", "method.name", "method.x.y", "", ".", "a..b", "é", "\0", "a" * 3000)
    for number in range(count):
        setting = f"{rng.choice(keys)}{rng.choice(('=', '=', '==', ' = ', ''))}{rng.choice(VALUES)}"
        with guarded():
            _, error = answer_or_refusal(f"setting {number}", lambda setting=setting: _read(SHIPPED[0], (setting,)))
            answer_or_refusal(f"knob {number}", lambda setting=setting: parse_setting(setting))
        refused += error is not None
    record_property("settings", f"{refused} of {count} refused, the others taken")


JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**9,
    10**30,
    float("nan"),
    "",
    "x",
    "\ud800",
    "\x1b[31m",
    [],
    [[]],
    {},
    {"a": 1},
)


def _put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Returns a copy of plain data with another value at a path."""
    made = copy.deepcopy(tree)
    node = made
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return made


def test_any_settings_of_an_encoder_are_taken_or_refused(
    plain_checkpoint: Path, rounds: Rounds, record_property: Record
) -> None:
    settings = json.loads((plain_checkpoint / "config.json").read_text())
    cases = [(key, value) for key in settings for value in JSON_VALUES]
    rng, refused = random.Random(23), 0
    tried = cases if len(cases) < (count := rounds(60, 1000)) else rng.sample(cases, count)
    for key, value in tried:
        with guarded():
            made = {**settings, key: value}
            _, error = answer_or_refusal(f"{key}: {value!r}", lambda made=made: build_encoder(made, where="c.json"))
        refused += error is not None
    record_property("settings", f"{refused} of {len(tried)} refused, the others are an encoder's")


@pytest.mark.parametrize("name", ["config.json", "edgebert.yaml", "model.safetensors"])
def test_any_damaged_checkpoint_is_opened_or_refused(
    tmp_path: Path, plain_checkpoint: Path, name: str, rounds: Rounds, record_property: Record
) -> None:
    import shutil

    copied = shutil.copytree(plain_checkpoint, tmp_path / "checkpoint")
    data, rng, refused = (copied / name).read_bytes(), random.Random(24), 0
    count = rounds(25, 500)
    for number in range(count):
        if name == "model.safetensors":
            head = damaged(rng, data[:3000])
            (copied / name).write_bytes(head + data[3000 : rng.choice((len(data), rng.randint(3000, len(data))))])
        else:
            (copied / name).write_bytes(damaged(rng, data))
        with guarded():
            _, error = answer_or_refusal(f"{name} {number}", lambda: load_checkpoint(copied))
        refused += error is not None
    record_property("checkpoints", f"{refused} of {count} with a damaged {name} refused, the others opened")


def test_the_results_are_drawn_while_nothing_is_wrong(invoke: Invoke, tmp_path: Path) -> None:
    paths = [tmp_path / "evaluated.json", tmp_path / "timed.json"]
    for path, result in zip(paths, results(), strict=True):
        path.write_text(json.dumps(result), encoding="utf-8")

    code, _, err = invoke("report", *paths, "-o", tmp_path / "report.html")

    assert code == 0, err
    assert "9 charts" in err


def test_any_damaged_result_is_read_or_refused(tmp_path: Path, rounds: Rounds, record_property: Record) -> None:
    rng, refused, count = random.Random(25), 0, rounds(150, 3000)
    target = tmp_path / "result.json"
    for number in range(count):
        result = rng.choice(results())
        if number % 3:
            target.write_text(json.dumps(_put(result, rng.choice(list(leaves(result))[1:]), rng.choice(JSON_VALUES))))
        else:
            target.write_bytes(damaged(rng, json.dumps(result).encode()))
        with guarded():
            _, error = answer_or_refusal(f"result {number}", lambda: read_results([target]))
        assert error is None or (isinstance(error, DataError) and str(error).startswith(f"{target}:")), error
        refused += error is not None
    record_property("results", f"{refused} of {count} damaged ones refused, the others read")


def test_any_damaged_result_is_drawn_or_refused(
    tmp_path: Path, invoke: Invoke, rounds: Rounds, record_property: Record
) -> None:
    rng, codes, count = random.Random(26), Counter[int](), rounds(8, 300)
    target = tmp_path / "result.json"
    for _ in range(count):
        result = rng.choice(results())
        result = _put(result, rng.choice(list(leaves(result))[1:]), rng.choice(JSON_VALUES))
        target.write_text(json.dumps(result))
        with guarded():
            code, _, err = invoke("report", target, "-o", tmp_path / "report.html", "--force")
        assert code in (0, 2), err
        codes[code] += 1
    record_property("reports", f"{codes[0]} of {count} drawn, {codes[2]} refused")


@pytest.mark.parametrize("policy", registry.names("edgebert.policies"))
def test_any_knob_is_taken_or_refused(policy: str) -> None:
    module = registry.load("edgebert.policies", policy)
    values = (*JSON_VALUES, np.float64(0.5), np.int64(1), b"x", object(), (1, 2), "1,2", float("inf"))
    for knob in ("threshold", "layer", *decode_names(module.Config)):
        for value in values:
            answer_or_refusal(
                f"{policy}.{knob}: {value!r}",
                lambda knob=knob, value=value: decode({knob: value}, module.Config, where=f"policy {policy}"),
            )


def decode_names(kind: Any) -> list[str]:
    """Returns the fields of a struct."""
    return list(kind.__struct_fields__)
