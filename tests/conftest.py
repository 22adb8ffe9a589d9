"""Tiny real models, bundles and data that many tests share. What these fixtures give must not be changed in place."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from edgebert import cli
from edgebert.bench import bench_bundles
from edgebert.bundle import TOKENIZER_NAME, open_bundle
from edgebert.bundle.graph_schema import parse_model
from edgebert.bundle.graph_weights import set_weights_aside
from edgebert.bundle.manifest import MANIFEST_NAME, OperatingPoint, encode_manifest
from edgebert.checkpoint import Checkpoint, CheckpointFacts, build_model, load_checkpoint, save_checkpoint
from edgebert.config import ExportConfig, RunConfig, TrainConfig
from edgebert.data import read_examples
from edgebert.encoders._blocks import Encoder, EncoderConfig, initialise
from edgebert.encoders._checkpoint import checkpoint_weights, settings_of
from edgebert.evaluate import evaluate_bundle
from edgebert.export import export_model
from edgebert.methods._paths import threshold
from edgebert.methods._program import Batch
from edgebert.methods.dpbert import DpBert
from edgebert.runtime.prepared import FOLDER_VARIABLE
from edgebert.tasks import load_task
from edgebert.text import TextEncoder

# Models this small gain nothing from threads, and on a busy machine waiting for each other costs them a hundredfold.
torch.set_num_threads(1)

# How long an example takes says more about the machine than about the code.
settings.register_profile("edgebert", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgebert")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--full`, which tests/faults reads."""
    parser.addoption("--full", action="store_true", help="try every fault as often as `make faults` does")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests recorded (`record_property`): counts that a pass alone does not show."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    for report in reports:
        for name, value in getattr(report, "user_properties", []):
            terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what tests prepare out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = str(folder)
    yield folder
    if before is None:
        del os.environ[FOLDER_VARIABLE]
    else:
        os.environ[FOLDER_VARIABLE] = before


Invoke = Callable[..., tuple[int, str, str]]
"""Runs the command line; see the fixture `invoke`."""


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgebert", *map(str, arguments)])
        if stdin is not None:
            given = SimpleNamespace(buffer=io.BytesIO(stdin.encode()), isatty=lambda: False)
            monkeypatch.setattr(sys, "stdin", given)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


LABELS = ("negative", "positive")
NEGATIVE = "awful bad boring clumsy dull hollow lifeless stale tedious weak"
POSITIVE = "brilliant charming clever fresh funny good gripping moving rich warm"
NEUTRAL = (
    "a about after all also an and are as at be but by camera cast character director each ending film for from hour "
    "in is it its just last like long made minute more movie music never new not of on one or out plot run scene "
    "script she so some still story than that the there they this time to too two until very was well what when which "
    "who will with without work you"
)


def _tokenizer() -> Tokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({*NEGATIVE.split(), *POSITIVE.split(), *NEUTRAL.split()} - set(letters))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", "!", "?", *words, *letters, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


_ROBERTA = {"token_types": 1, "norm_epsilon": 1e-5, "pad_token_id": 1, "positions_skip_padding": True}
_FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": _ROBERTA,
    "xlm_roberta": _ROBERTA,
    "distilbert": {"token_types": 0, "classifier_dropout": 0.2},
    "albert": {
        "activation": "gelu_new",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.1,
        "embedding_size": 16,
        "shared_layers": 3,
    },
    "electra": {"embedding_size": 16},
}


@pytest.fixture(scope="session")
def tiny_tokenizer() -> bytes:
    """The bytes of a small lower-casing WordPiece `tokenizer.json`; every Latin letter is a piece of its own."""
    return _tokenizer().to_str().encode()


@pytest.fixture(scope="session")
def tiny_encoder_config() -> EncoderConfig:
    """The shape of the shared tiny models: 3 layers of width 32, at most 64 tokens."""
    return EncoderConfig(
        family="bert",
        layers=3,
        hidden_size=32,
        heads=4,
        feed_forward_size=64,
        vocabulary_size=_tokenizer().get_vocab_size(),
        max_positions=64,
    )


@pytest.fixture(scope="session")
def make_encoder(tiny_encoder_config: EncoderConfig) -> Callable[..., Encoder]:
    """Makes tiny encoders with random weights large enough that rows differ, with every bias and norm drawn too."""

    def make(seed: int = 3, *, standard_deviation: float = 0.5, **changes: object) -> Encoder:
        shape = EncoderConfig(**{**vars(tiny_encoder_config), **changes})
        encoder = Encoder(shape)
        scramble(encoder, seed, standard_deviation)
        return encoder.eval()

    return make


@pytest.fixture(scope="session")
def family_config(tiny_encoder_config: EncoderConfig) -> Callable[[str], EncoderConfig]:
    """Returns the shape of a family's shared tiny model: that of `tiny_encoder_config` with what the family has."""

    def shape(family: str, **changes: object) -> EncoderConfig:
        return EncoderConfig(**{**vars(tiny_encoder_config), "family": family, **_FAMILIES[family], **changes})

    return shape


def scramble(module: nn.Module, seed: int, standard_deviation: float) -> None:
    """Draws every weight anew, biases and norms included, so that no part is invisible to a comparison."""
    torch.manual_seed(seed)
    initialise(module, standard_deviation=standard_deviation)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.LayerNorm):
                part.weight.add_(0.2 * torch.randn_like(part.weight))
            if isinstance(part, nn.LayerNorm | nn.Linear) and part.bias is not None:
                part.bias.add_(0.2 * torch.randn_like(part.bias))


@pytest.fixture(scope="session")
def balance_planner() -> Callable[[DpBert, Batch], None]:
    """Moves the biases of a model's planner so that about half of a batch's rows run each layer."""

    def balance(model: DpBert, batch: Batch) -> None:
        for index in range(len(model.encoder.layers)):
            with torch.no_grad():
                logits = model.walk(batch, threshold).include_logits
                if isinstance(model.planner, nn.ModuleList):
                    model.planner[index].decide.bias.sub_(logits[:, index].quantile(0.5))
                elif model.config.shared_planner:
                    model.planner.decide.bias.sub_(logits.quantile(0.5))
                else:
                    model.planner.decide.bias.sub_(logits.quantile(0.5, dim=0))

    return balance


@pytest.fixture(scope="session")
def tiny_hf_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: bytes, make_encoder: Callable[..., Encoder]
) -> Path:
    """A tiny BertModel as transformers saves it, with its tokenizer: what a training starts from."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    encoder = make_encoder(standard_deviation=0.05)
    model = transformers.BertModel(transformers.BertConfig(**settings_of(encoder.config)), add_pooling_layer=False)
    model.load_state_dict({name.removeprefix("bert."): w for name, w in checkpoint_weights(encoder).items()})
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer)
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def save_tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: bytes, make_encoder: Callable[..., Encoder]
) -> Callable[..., Path]:
    """Writes a checkpoint of a method around a tiny random encoder and returns its folder."""

    def save(
        method: dict[str, object],
        points: dict[str, OperatingPoint],
        *,
        seed: int = 3,
        with_tokenizer: bool = True,
        task: str = "classification",
        max_length: int = 48,
        **changes: object,
    ) -> Path:
        labels = ("stars",) if task == "regression" else load_task(task).LABELS or LABELS
        windows = {"overlap_tokens": 8, "max_question_tokens": 8, "max_answer_tokens": 5}
        own = windows if task == "question_answering" else {}
        train = TrainConfig(max_length=max_length, task=task, task_settings=own)
        config = RunConfig(method=method, train=train, export=ExportConfig(verify_samples=16, whole_model=True))
        model = build_model(make_encoder(seed, **changes), config, len(labels))
        for name, part in model.named_children():  # type: ignore[attr-defined]
            if name != "encoder":
                scramble(part, seed + 1, 0.4)
        facts = CheckpointFacts(labels=labels, seed=seed, config=config, operating_points=points)
        folder = tmp_path_factory.mktemp("checkpoints") / str(method["name"])
        tokenizer = {"tokenizer.json": tiny_tokenizer} if with_tokenizer else {}
        save_checkpoint(Checkpoint(model, facts, tokenizer), folder, force=False)
        return folder

    return save


@pytest.fixture(scope="session")
def plain_checkpoint(save_tiny_checkpoint: Callable[..., Path]) -> Path:
    """A `plain` checkpoint of the tiny model that pools the first token."""
    return save_tiny_checkpoint({"name": "plain", "pool": "cls"}, {"default": OperatingPoint(policy="never", knobs={})})


@pytest.fixture(scope="session")
def dact_checkpoint(save_tiny_checkpoint: Callable[..., Path]) -> Path:
    """A `dact_bert` checkpoint whose rows stop after different layers."""
    points = {
        "default": OperatingPoint(policy="halting", knobs={"slack": 0.0, "bound": "paper"}),
        "confidence": OperatingPoint(policy="confidence", knobs={"threshold": 0.75}),
    }
    return save_tiny_checkpoint({"name": "dact_bert", "trunk": 16, "halt_bias": 0.0}, points)


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory, plain_checkpoint: Path) -> Path:
    """The bundle of `plain_checkpoint`, with its whole-model form."""
    return export_model(plain_checkpoint, tmp_path_factory.mktemp("bundles") / "plain").path


@pytest.fixture(scope="session")
def dact_bundle(tmp_path_factory: pytest.TempPathFactory, dact_checkpoint: Path) -> Path:
    """The bundle of `dact_checkpoint`, each exit linked into its layer's graph."""
    return export_model(dact_checkpoint, tmp_path_factory.mktemp("bundles") / "dact").path


@pytest.fixture(scope="session")
def dact_bundle_split(tmp_path_factory: pytest.TempPathFactory, dact_checkpoint: Path) -> Path:
    """The bundle of `dact_checkpoint`, each exit a graph of its own."""
    config = ExportConfig(verify_samples=16, link=False)
    return export_model(dact_checkpoint, tmp_path_factory.mktemp("bundles") / "dact-split", settings=config).path


@pytest.fixture(scope="session")
def token_bundle(tmp_path_factory: pytest.TempPathFactory, save_tiny_checkpoint: Callable[..., Path]) -> Path:
    """A `dynamic_tinybert` bundle whose layers let shares of 0.6, 0.3 and 0.2 of the tokens go on."""
    points = {"default": OperatingPoint(policy="lengths", knobs={"lengths": "0.6,0.3,0.2"})}
    checkpoint = save_tiny_checkpoint({"name": "dynamic_tinybert"}, points)
    return export_model(checkpoint, tmp_path_factory.mktemp("bundles") / "tokens").path


@pytest.fixture(scope="session")
def width_bundle(tmp_path_factory: pytest.TempPathFactory, save_tiny_checkpoint: Callable[..., Path]) -> Path:
    """A `tbert` bundle of which half the heads and blocks run."""
    points = {"default": OperatingPoint(policy="width", knobs={"width": 0.5, "exact_budget": False})}
    checkpoint = save_tiny_checkpoint({"name": "tbert"}, points)
    return export_model(checkpoint, tmp_path_factory.mktemp("bundles") / "widths").path


@pytest.fixture
def without_tokenizer(tmp_path: Path) -> Callable[[Path], Path]:
    """Makes a copy of a bundle that has no tokenizer, as one of random weights has none."""

    def copy(source: Path) -> Path:
        bundle = shutil.copytree(source, tmp_path / "no-tokenizer")
        (bundle / TOKENIZER_NAME).unlink()
        manifest = open_bundle(source).manifest
        files = {name: facts for name, facts in manifest.files.items() if name != TOKENIZER_NAME}
        (bundle / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
        return bundle

    return copy


@pytest.fixture(scope="session")
def result_files(
    tmp_path_factory: pytest.TempPathFactory,
    dact_bundle: Path,
    plain_bundle: Path,
    token_bundle: Path,
    width_bundle: Path,
    sentiment_data: Path,
) -> list[Path]:
    """What `edgebert eval --json` and `edgebert bench --json` print: enough for every picture of a report."""
    folder = tmp_path_factory.mktemp("results")
    data, frontier = sentiment_data / "test.tsv", ["static-frontier"]
    results = {
        "evaluated": evaluate_bundle(
            [dact_bundle, plain_bundle], [data], against=frontier, threads=1, timed_texts=5, maps=6
        ),
        "inside": evaluate_bundle([token_bundle, width_bundle], [data], threads=1, maps=6),
        "timed": bench_bundles([dact_bundle], data=data, against=plain_bundle, max_texts=5, repeats=5, per_step=True),
    }
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    return [folder / f"{name}.json" for name in results]


@pytest.fixture(scope="session")
def reader_checkpoint(save_tiny_checkpoint: Callable[..., Path]) -> Path:
    """A `plain` checkpoint that answers questions, with windows of 48 tokens that share 8."""
    points = {"default": OperatingPoint(policy="never", knobs={})}
    return save_tiny_checkpoint({"name": "plain"}, points, task="question_answering")


@pytest.fixture(scope="session")
def reader_bundle(tmp_path_factory: pytest.TempPathFactory, reader_checkpoint: Path) -> Path:
    """The bundle of `reader_checkpoint`, with its whole-model form."""
    return export_model(reader_checkpoint, tmp_path_factory.mktemp("bundles") / "reader").path


@pytest.fixture(scope="session")
def geep_checkpoint(save_tiny_checkpoint: Callable[..., Path], texts: list[str], tiny_tokenizer: bytes) -> Path:
    """A `geep` checkpoint whose token table was counted on half of `texts` and sends rows to every layer."""
    knobs = {"prediction": "expect", "gain": 8.0, "offset": 0.0}
    points = {"default": OperatingPoint(policy="predicted_exit", knobs=knobs)}
    folder = save_tiny_checkpoint({"name": "geep", "speed": 0.9}, points)
    checkpoint = load_checkpoint(folder)
    scramble(checkpoint.model.classifier, 4, 0.15)  # it is wider than the encoder and would magnify rounding errors
    text = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0)
    values = {name: torch.from_numpy(value) for name, value in text.pad(text.encode(texts[:100])).items()}
    checkpoint.model.eval()
    with torch.no_grad():
        checkpoint.model.calibrate([Batch(**values)], text.special_ids)
    save_checkpoint(checkpoint, folder, force=True)
    return folder


@pytest.fixture(scope="session")
def geep_bundle(tmp_path_factory: pytest.TempPathFactory, geep_checkpoint: Path) -> Path:
    """The bundle of `geep_checkpoint`: a plan before the layers, one head for all depths."""
    return export_model(geep_checkpoint, tmp_path_factory.mktemp("bundles") / "geep").path


@pytest.fixture(scope="session")
def sentiment_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test.tsv (200, 40 and 40 rows) that a tiny model can learn."""
    folder = tmp_path_factory.mktemp("data") / "sentiment"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, rows in (("train", 200), ("validation", 40), ("test", 40)):
        lines = ["text\tlabel"]
        for number in range(rows):
            telling = (NEGATIVE, POSITIVE)[number % 2].split()
            words = [*rng.choice(NEUTRAL.split(), rng.integers(1, 12)), *rng.choice(telling, rng.integers(1, 4))]
            lines.append(f"{' '.join(rng.permutation(words))}\t{LABELS[number % 2]}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def questions_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test.json in SQuAD's form: 60, 12 and 12 passages of two questions each.

    Each passage has one word of `POSITIVE` and one of `NEGATIVE`, which are the answers; some take several windows.
    """
    folder = tmp_path_factory.mktemp("data") / "questions"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, passages in (("train", 60), ("validation", 12), ("test", 12)):
        paragraphs = []
        for number in range(passages):
            told = {"good": str(rng.choice(POSITIVE.split())), "bad": str(rng.choice(NEGATIVE.split()))}
            # The passage and an answer of its own word; a question's word is none of the passage's.
            fillers = rng.choice([w for w in NEUTRAL.split() if w not in told], 60 if number % 10 == 9 else 12)
            context = " ".join(rng.permutation([*fillers, *told.values()]))
            qas = [
                {
                    "id": f"{split}-{number}-{asked}",
                    "question": f"which is {asked} ?",
                    "answers": [{"text": word, "answer_start": f" {context} ".index(f" {word} ")}] * 2,
                }
                for asked, word in told.items()
            ]
            paragraphs.append({"context": context, "qas": qas})
        squad = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
        (folder / f"{split}.json").write_text(json.dumps(squad), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def texts(sentiment_data: Path) -> list[str]:
    """The 200 training texts of `sentiment_data`, of 2 to 14 words."""
    return [example.text for example in read_examples(sentiment_data, split="train")]


def _said_by(model: Any, weight_bytes: dict[int, int] | None = None) -> dict[str, Any]:
    """Returns what a model says of everything that is checked, read by `onnx` or by the reduced schema alike."""

    def value(given: Any) -> tuple[Any, ...]:
        tensor = given.type.tensor_type
        return given.name, tensor.elem_type, [(axis.dim_value, axis.dim_param) for axis in tensor.shape.dim]

    def constant(tensor: Any, raw_bytes: int | None = None) -> tuple[Any, ...]:
        raw = len(tensor.raw_data) if raw_bytes is None else raw_bytes
        return tensor.name, list(tensor.dims), tensor.data_type, tensor.data_location, len(tensor.external_data), raw

    def graph(given: Any, lengths: dict[int, int] | None = None) -> dict[str, Any]:
        tensors = enumerate(given.initializer)
        return {
            "nodes": [(node.op_type, node.domain, [attribute(a) for a in node.attribute]) for node in given.node],
            "constants": [constant(t, None if lengths is None else lengths.get(n, 0)) for n, t in tensors],
            "values": ([value(v) for v in given.input], [value(v) for v in given.output]),
        }

    def attribute(given: Any) -> tuple[Any, ...]:
        inner = [graph(g) for g in ([given.g] if given.HasField("g") else []) + list(given.graphs)]
        tensors = [constant(t) for t in ([given.t] if given.HasField("t") else []) + list(given.tensors)]
        return inner, tensors

    return {
        "versions": (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]),
        "others": (len(model.functions), len(model.training_info), [entry.key for entry in model.metadata_props]),
        "graph": graph(model.graph, weight_bytes),
    }


@pytest.fixture(scope="session")
def read_like_onnx() -> Callable[[bytes], None]:
    """Asserts that the reduced schema reads a graph as `onnx` does, with its weights or without."""

    def check(data: bytes) -> None:
        expected = _said_by(onnx.load_from_string(data))
        rest, weight_bytes = set_weights_aside(data)
        assert weight_bytes is not None
        assert len(rest) <= len(data)
        assert _said_by(parse_model(rest, where="graph"), weight_bytes) == expected
        assert _said_by(parse_model(data, where="graph")) == expected

    return check
