"""Runs the blocks of the README as a user would, with tiny models in the place of real ones."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgebert import registry
from edgebert.checkpoint import build_model
from edgebert.config import RunConfig, TrainConfig
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.errors import ConfigError

Invoke = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
BASH = [block for language, block in BLOCKS if language == "bash"]
PYTHON = [block for language, block in BLOCKS if language == "python"]


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_hf_folder: Path,
    sentiment_data: Path,
    questions_data: Path,
    dact_bundle: Path,
) -> Path:
    """A folder where the README's relative names exist; options not given there make the model tiny."""
    for config in shutil.copytree(ROOT / "export_configs", tmp_path / "export_configs").glob("*.yaml"):
        settings = config.read_text(encoding="utf-8")
        settings, replaced = re.subn(r"tuning_rows: \d+", "tuning_rows: 40", settings)
        assert replaced == 1
        config.write_text(settings, encoding="utf-8")
    shutil.copytree(sentiment_data, tmp_path / "sst2")
    shutil.copytree(questions_data, tmp_path / "squad")
    shutil.copytree(dact_bundle, tmp_path / "bundle")
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub.pem").write_bytes(public)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEBERT_TRAIN_MODEL", str(tiny_hf_folder))
    monkeypatch.setenv("EDGEBERT_TRAIN_MAX_STEPS", "2")
    return tmp_path


def _commands(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


FIRST, *OTHERS = (block for block in BASH if block.startswith("edgebert"))


@pytest.mark.usefixtures("workplace")
def test_readme_first_commands() -> None:
    for command in _commands(FIRST):
        done = subprocess.run(
            [sys.executable, "-m", "edgebert.cli", *command[1:]], capture_output=True, text=True, check=False
        )
        assert command[0] == "edgebert"
        assert done.returncode == 0, f"{command}: {done.stderr}"


# In this process, which has torch loaded and layers traced: a minute less.
@pytest.mark.parametrize("block", OTHERS)
@pytest.mark.usefixtures("workplace")
def test_readme_commands(block: str, invoke: Invoke) -> None:
    for command in _commands(block):
        arguments = command.index(">") if ">" in command else len(command)
        code, out, err = invoke(*command[1:arguments])
        assert command[0] == "edgebert"
        assert code == 0, f"{command}: {err}"
        for output in command[arguments + 1 :]:
            Path(output).write_text(out, encoding="utf-8")


@pytest.mark.parametrize("block", PYTHON)
@pytest.mark.usefixtures("workplace")
def test_readme_python(block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("block", [b for b in BASH if b.startswith("make")])
def test_readme_make_targets_exist(block: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for command in _commands(block):
        assert re.search(rf"^{command[1]}:", makefile, flags=re.MULTILINE)


def test_readme_blocks_are_all_run() -> None:
    assert {language for language, _ in BLOCKS} <= {"bash", "python"}
    assert all(block.startswith(("make", "edgebert")) for block in BASH)


@pytest.mark.parametrize("folder", ["methods", "policies", "encoders", "tasks"])
def test_readme_names_every_kind_of_variant(folder: str) -> None:
    assert f"edgebert/{folder}/" in README


@pytest.mark.parametrize(
    "name", sorted(p.stem for kind in ("methods", "policies") for p in (ROOT / "edgebert" / kind).glob("[a-z]*.py"))
)
def test_readme_names_every_method_and_policy(name: str) -> None:
    assert f"| `{name}` |" in README


def test_readme_says_what_runs(
    make_encoder: Callable[..., Encoder], family_config: Callable[..., EncoderConfig]
) -> None:
    families = {name: make_encoder(**vars(family_config(name))) for name in registry.names("edgebert.encoders")}
    tasks = registry.names("edgebert.tasks")

    def cell(method: str, task: str) -> str:
        if task not in registry.load("edgebert.methods", method).TASKS:
            return "-"
        config = RunConfig(method={"name": method}, train=TrainConfig(task=task))
        n_labels = {"regression": 1}.get(task, 2)
        runs = [name for name, encoder in families.items() if _builds(encoder, config, n_labels)]
        return "all six" if runs == list(families) else ", ".join(runs)

    assert len(families) == 6
    rows = [(f"`{method}`", *(cell(method, task) for task in tasks)) for method in registry.names("edgebert.methods")]
    table = [("", *tasks), ("---",) * (len(tasks) + 1), *rows]
    expected = "\n".join(f"| {' | '.join(row)} |" for row in table)
    assert expected in README, f"the README should have this table:\n{expected}"


def _builds(encoder: Encoder, config: RunConfig, n_labels: int) -> bool:
    try:
        build_model(encoder, config, n_labels).steps()
    except ConfigError:
        return False
    return True


def test_readme_files_exist() -> None:
    for path in re.findall(r"`(export_configs/\w+\.yaml)`|(export_configs/\w+\.yaml)", README):
        assert (ROOT / (path[0] or path[1])).is_file() or "NAME" in (path[0] or path[1])
