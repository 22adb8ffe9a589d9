import math
import re
from pathlib import Path
from typing import Any

import pytest

from edgebert.config import ExportConfig, RunConfig, TrainConfig, decode, parse_setting, read_config
from edgebert.errors import ConfigError
from edgebert.methods import dact_bert

VALID = "method: {name: dact_bert, tau: 0.1}\ntrain: {batch_size: 8, stage_epochs: [1, 0.5]}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def _message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        read_config(path, overrides)
    return re.sub(rf"^{re.escape(str(path))}:(\d+:)? ", "", str(raised.value))


def test_read_config_values_and_defaults(path: Path) -> None:
    path.write_text(VALID)

    config = read_config(path)

    assert config == RunConfig(
        method={"name": "dact_bert", "tau": 0.1}, train=TrainConfig(batch_size=8, stage_epochs=(1.0, 0.5))
    )
    assert config.method_name == "dact_bert"
    assert config.method_settings() == {"tau": 0.1}
    assert config.export == ExportConfig()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.batch_size=16",), {"batch_size": 16}),
        (("train.batch_size=16", "train.batch_size=4"), {"batch_size": 4}),
        (("train.stage_epochs=[0.5]",), {"stage_epochs": (0.5,)}),
        (("train.columns.text=sentence",), {"columns": {"text": "sentence"}}),
        (("train.data=a=b",), {"data": "a=b"}),
        (("train.learning_rate=1.0e-3",), {"learning_rate": 1e-3}),
        (("train.learning_rate=1e-3",), {"learning_rate": 1e-3}),
    ],
)
def test_read_config_overrides(path: Path, overrides: tuple[str, ...], expected: dict[str, Any]) -> None:
    path.write_text(VALID)

    train = read_config(path, overrides).train

    assert {key: getattr(train, key) for key in expected} == expected


def test_read_config_override_of_a_missing_section(path: Path) -> None:
    path.write_text(VALID)

    assert read_config(path, ("export.opset=20",)).export.opset == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}\nmethod: {name: plain}", "unknown key 'trian'. Did you mean 'train'?"),
        (
            "method: {name: plain}\ntrain: {batch_sise: 3}",
            "unknown key 'train.batch_sise'. Did you mean 'batch_size'?",
        ),
        (
            "method: {name: plain}\ntrain: {learning_rate: fast}",
            "train.learning_rate: expected `float`, got `str` 'fast'",
        ),
        ("method: {name: plain}\ntrain: {batch_size: 2.5}", "train.batch_size: expected `int`, got `float`"),
        ("method: {name: plain}\nexport: {link: 1}", "export.link: expected `bool`, got `int`"),
        ("method: {name: plain}\ntrain: {precision: fp8}", "train.precision: invalid enum value 'fp8'"),
        ("method: {name: plain}\ntrain: {stage_epochs: [a]}", "train.stage_epochs[0]: expected `float`, got `str`"),
        ("method: {name: plain}\nexport: {opset: 17}", "export: opset: expected 18 to 23, got 17"),
        ("train: {}", "object missing required field `method`"),
        ("method: {}", "method.name: expected the name of a method, such as dact_bert."),
        ("method: {name: 3}", "method.name: expected the name of a method, such as dact_bert."),
        ("[1]", "expected sections by name, got list [1]."),
        ("", "expected sections by name, got None."),
    ],
)
def test_read_config_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)

    assert _message(path) == message


@pytest.mark.parametrize(
    "setting",
    [
        "max_length: 2",
        "batch_size: 0",
        "stage_epochs: []",
        "stage_epochs: [-1]",
        "learning_rate: 0.0",
        "head_learning_rate_factor: -1.0",
        "weight_decay: -0.1",
        "warmup_share: 1.5",
        "tuning_rows: 0",
        "max_drop_points: -0.5",
        "calibration_rows: -1",
        "attention_dropout: 1.0",
    ],
)
def test_train_config_out_of_range(path: Path, setting: str) -> None:
    path.write_text(f"method: {{name: plain}}\ntrain: {{{setting}}}")

    assert _message(path).startswith(f"train: {setting.partition(':')[0]}: expected ")


@pytest.mark.parametrize("setting", ["opset: 24", "verify_samples: 0", "tolerance: 0.0"])
def test_export_config_out_of_range(path: Path, setting: str) -> None:
    path.write_text(f"method: {{name: plain}}\nexport: {{{setting}}}")

    assert _message(path).startswith(f"export: {setting.partition(':')[0]}: expected ")


@pytest.mark.parametrize("content", [b"method: [", b"\xff\xfe\x00"])
def test_read_config_not_yaml(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    assert _message(path).startswith(("not YAML: ", "expected UTF-8, got the byte 0xff"))
    assert "\n" not in _message(path)


def test_read_config_missing_file(path: Path) -> None:
    assert _message(path) == "cannot read the file (No such file or directory)."


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size", "--set train.batch_size: expected key=value, such as train.batch_size=16."),
        ("=3", "--set =3: expected key=value, such as train.batch_size=16."),
        ("method.name.x=3", "--set method.name.x=3: 'name' is a value, not a section."),
        ("train.batch=3", "--set train.batch=3: unknown key 'train.batch'. Did you mean 'batch_size'?"),
        (
            "train.learning_rate=fast",
            "--set train.learning_rate=fast: train.learning_rate: expected `float`, got `str` 'fast'",
        ),
    ],
)
def test_read_config_override_refused(path: Path, override: str, message: str) -> None:
    path.write_text(VALID)

    assert _message(path, override) == message


def test_read_config_override_of_a_file_that_is_wrong_itself(path: Path) -> None:
    path.write_text("method: {name: plain}\ntrain: {batch_size: x}")

    with pytest.raises(ConfigError, match=r"run\.yaml:2: train\.batch_size: expected `int`, got `str`$"):
        read_config(path, ("train.max_length=16",))
    assert read_config(path, ("train.batch_size=16",)).train.batch_size == 16


def test_read_config_override_not_yaml(path: Path) -> None:
    path.write_text(VALID)

    assert _message(path, "train.model=[a").startswith("--set train.model=[a: ")


def test_decode_method_settings_with_their_path() -> None:
    with pytest.raises(ConfigError, match=r"^config: unknown key 'method\.taw'\. Did you mean 'tau'\?$"):
        decode({"taw": 1}, dact_bert.Config, where="config", prefix="method.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threshold=0.9", ("threshold", 0.9)),
        ("layer=3", ("layer", 3)),
        ("slack=1e-5", ("slack", 1e-5)),
        ("slack='1e-5'", ("slack", "1e-5")),
        ("bound=tight", ("bound", "tight")),
        ("layer=null", ("layer", None)),
    ],
)
def test_parse_setting_values(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["threshold", "=1", "lengths=[1"])
def test_parse_setting_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set "):
        parse_setting(text)


@pytest.mark.parametrize(
    "values",
    [
        {"stage_epochs": (math.inf,)},
        {"stage_epochs": (1.0, math.nan)},
        {"learning_rate": math.inf},
        {"head_learning_rate_factor": math.nan},
        {"weight_decay": math.nan},
    ],
)
def test_train_config_not_finite(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(values))}: expected "):
        TrainConfig(**values)
