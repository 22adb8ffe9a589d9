"""Every file of a kind of variant defines what its kind must, has its configuration, and has its test."""

import inspect
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgebert import registry
from edgebert.config import decode, read_config
from edgebert.encoders._blocks import EncoderConfig
from edgebert.policies import ExitPosition, make_policy
from edgebert.tasks import Task, load_task, task_settings

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "export_configs").glob("*.yaml"))
VARIANTS = [
    (kind, name)
    for kind in ("methods", "policies", "encoders", "tasks", "report")
    for name in registry.names(f"edgebert.{kind}")
]


@pytest.mark.parametrize(("kind", "name"), VARIANTS)
def test_variant_has_a_test_file(kind: str, name: str) -> None:
    assert list((ROOT / "tests").glob(f"**/test_{name}.py")) == [ROOT / "tests" / kind / f"test_{name}.py"]


@pytest.mark.parametrize(("kind", "name"), VARIANTS)
def test_variant_says_what_it_is(kind: str, name: str) -> None:
    module = registry.load(f"edgebert.{kind}", name)

    assert (module.__doc__ or "").strip()


@pytest.mark.parametrize("name", registry.names("edgebert.methods"))
def test_method_defines_its_names(name: str) -> None:
    method = registry.load("edgebert.methods", name)

    policy, knobs = method.rule(method.Config())

    assert issubclass(method.Config, msgspec.Struct)
    assert callable(method.build)
    assert isinstance(method.WHOLE_MODEL, bool)
    assert method.STAGES
    assert len(set(method.STAGES)) == len(method.STAGES)
    assert sorted([*method.TASKS, *method.REFUSES]) == registry.names("edgebert.tasks")
    assert all(reason and not reason.endswith(".") for reason in method.REFUSES.values())
    assert {policy, "never"} <= set(method.POLICIES) <= set(registry.names("edgebert.policies"))
    make_policy(policy, knobs, exit_layers=[1, 2])
    assert method.__doc__.startswith(f"{name}: ")
    assert "https://arxiv.org/" in method.__doc__


@pytest.mark.parametrize("name", registry.names("edgebert.methods"))
def test_method_has_a_configuration(name: str) -> None:
    assert [path for path in CONFIGS if read_config(path).method_name == name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_loads_strictly(path: Path) -> None:
    config = read_config(path)

    method = registry.load("edgebert.methods", config.method_name)
    settings = decode(config.method_settings(), method.Config, where=path.name, prefix="method.")

    assert path.name.startswith(f"{config.method_name}_")
    assert len(config.train.stage_epochs) == len(method.STAGES)
    assert config.train.task in method.TASKS
    # Complete on its own: every setting of the method is written down.
    assert set(config.method_settings()) == {field.name for field in msgspec.structs.fields(type(settings))}
    task = load_task(config.train.task)
    task_settings(task, config.train.task_settings, where=path.name)
    assert set(config.train.task_settings) == {field.name for field in msgspec.structs.fields(task.Config)}


@pytest.mark.parametrize("name", registry.names("edgebert.policies"))
def test_policy_defines_its_names(name: str) -> None:
    module = registry.load("edgebert.policies", name)

    policy = make_policy(name, {}, exit_layers=[1, 2])

    knobs = {field.name for field in msgspec.structs.fields(module.Config)}
    assert isinstance(policy, module.Policy)
    assert set(module.CHEAPER) <= knobs
    assert set(module.CHEAPER.values()) <= {"lower", "higher"}
    assert all(set(setting) <= knobs for setting in module.GRID)
    assert isinstance(policy.reads(ExitPosition(2, 0)), bool)


@pytest.mark.parametrize(
    ("name", "knob", "cheaper"),
    [
        (name, knob, cheaper)
        for name in registry.names("edgebert.policies")
        for module in [registry.load("edgebert.policies", name)]
        for knob, cheaper in module.CHEAPER.items()
        if module.GRID
    ],
)
def test_policy_grid_runs_from_the_costliest(name: str, knob: str, cheaper: str) -> None:
    series: dict[str, list[float]] = {}
    for setting in registry.load("edgebert.policies", name).GRID:
        if knob in setting:
            others = {other: value for other, value in setting.items() if other != knob}
            series.setdefault(str(others), []).append(setting[knob])

    assert series
    for values in series.values():
        assert len(values) >= 10
        assert values == sorted(set(values), reverse=cheaper == "lower")


@pytest.mark.parametrize("name", registry.names("edgebert.encoders"))
def test_encoder_defines_its_names(name: str, family_config: Callable[..., EncoderConfig]) -> None:
    family = registry.load("edgebert.encoders", name)

    settings = family.write_config(family_config(name))

    assert settings["model_type"].replace("-", "_") == name
    assert family.read_config(settings, where="x") == family_config(name)
    assert family.PREFIX.endswith(".")
    assert len({theirs for theirs, _ in family.RENAMES}) == len({ours for _, ours in family.RENAMES})
    assert family.HEAD_RENAMES
    assert callable(family.ClassificationHead)


@pytest.mark.parametrize("name", registry.names("edgebert.tasks"))
def test_task_defines_its_names(name: str) -> None:
    task = load_task(name)

    verbs = {verb for verb in vars(Task) if not verb.startswith("_")}
    assert verbs >= {"label_names", "encode_targets", "predictions", "metrics"}
    assert all(callable(getattr(task, verb)) for verb in verbs)
    assert isinstance(task.METRIC, str)
    assert task.ASKED in ("texts", "questions")
    assert all(isinstance(text, str) for text in (task.CALL, task.ARGUMENTS, task.PIPELINE_TAG))
    assert task.AUTO_MODEL.startswith("AutoModelFor")
    assert task.PROBLEM_TYPE is None or isinstance(task.PROBLEM_TYPE, str)
    assert (task.LABELS is None) == (not task.PER_TOKEN)
    assert issubclass(task.Config, msgspec.Struct)
    assert isinstance(task.HAS_PROBABILITIES, bool)
    assert task.per_text is None or callable(task.per_text)


@pytest.mark.parametrize("name", registry.names("edgebert.tasks"))
@pytest.mark.parametrize(
    "verb",
    [
        *("read", "read_line", "groups", "label_names", "check_labels", "encode", "encode_targets", "row_targets"),
        *("values", "ranked", "predictions", "metric", "metrics", "agreement"),
    ],
)
def test_task_takes_what_callers_give(name: str, verb: str) -> None:
    given, expected = (inspect.signature(getattr(owner, verb)) for owner in (load_task(name), Task))

    assert list(given.parameters) == [parameter for parameter in expected.parameters if parameter != "self"]


@pytest.mark.parametrize("name", registry.names("edgebert.report"))
def test_picture_defines_its_names(name: str) -> None:
    picture = registry.load("edgebert.report", name)

    others = [registry.load("edgebert.report", other) for other in registry.names("edgebert.report") if other != name]
    assert picture.__doc__.startswith(f"{name}: ")
    assert picture.TITLE
    assert picture.CAPTION.endswith(".")
    assert picture.COMMAND.startswith("edgebert ")
    assert picture.PLACE not in {other.PLACE for other in others}
    assert list(inspect.signature(picture.chart).parameters) == ["results"]
