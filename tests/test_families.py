"""Every family goes the whole road with every method, each with a vocabulary of its usual kind."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgebert import EdgeModel, registry
from edgebert.bundle import open_bundle
from edgebert.checkpoint import load_checkpoint
from edgebert.config import ExportConfig, RunConfig, read_config
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.encoders._checkpoint import build_encoder, checkpoint_weights, settings_of
from edgebert.errors import DataError
from edgebert.export import export_model
from edgebert.rivals import whole
from edgebert.rivals._hugging_face import inputs_of, open_model
from edgebert.rivals._protocol import Spec
from edgebert.training import train_model
from edgebert.verify import verify_bundle

ROOT = Path(__file__).parent.parent
FAMILIES = registry.names("edgebert.encoders")
METHODS = registry.names("edgebert.methods")
# Every method's own tests use BERT, and XLM-R's layers are RoBERTa's.
PAIRS = [("xlm_roberta", "plain"), *itertools.product(sorted({*FAMILIES} - {"bert", "xlm_roberta"}), METHODS)]
# What these exits run on differs with the family as it does for dact_bert's, and ELECTRA's layers are BERT's: make
# test-long has them.
LONG = {
    *itertools.product(("albert", "distilbert", "roberta"), ("deebert", "fastbert", "pabee")),
    *itertools.product(("electra",), sorted({*METHODS} - {"plain", "dact_bert", "dpbert"})),
}
_SHAPE = ("family", "layers", "hidden_size", "heads", "feed_forward_size", "token_types", "pad_token_id")
_SHAPE += ("embedding_size", "shared_layers", "vocabulary_size")
CHINESE = {"好": "positive", "喜": "positive", "差": "negative", "烂": "negative"}


def _with_specials(tokenizer: Tokenizer, first: str, last: str) -> Tokenizer:
    """Puts marks around texts; the second of a pair is segment 1, whether the model has segments or not."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return tokenizer


def _byte_level(words: list[str]) -> Tokenizer:
    """Byte-level BPE as RoBERTa has it, with a merge for each step of a few words."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in words:
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            tokens.append(word[: end + 1])
    unique = list(dict.fromkeys(tokens))
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(unique)}, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_specials(tokenizer, "<s>", "</s>")


def _unigram(words: list[str], specials: tuple[str, ...]) -> Tokenizer:
    """SentencePiece's unigram model as ALBERT and XLM-R have it: spaces are a mark inside the pieces."""
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    pieces = (
        [(token, 0.0) for token in specials] + [(f"▁{word}", -2.0) for word in words] + [(c, -6.0) for c in letters]
    )
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=specials.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _with_specials(tokenizer, *(token for token in specials if token in ("<s>", "</s>", "[CLS]", "[SEP]")))


def _chinese() -> Tokenizer:
    """A WordPiece vocabulary of single characters."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *CHINESE, *"这部电影很剧本我不得了看,。"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _with_specials(tokenizer, "[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def make_source(
    tmp_path_factory: pytest.TempPathFactory,
    make_encoder: Callable[..., Encoder],
    family_config: Callable[..., EncoderConfig],
) -> Callable[..., Path]:
    """Writes a tiny two-layer encoder as `transformers` saves it, with its tokenizer."""

    def make(family: str, tokenizer: Tokenizer, layers: int = 2) -> Path:
        folder = tmp_path_factory.mktemp("sources") / family
        shared = layers if family == "albert" else 1
        changes = {"layers": layers, "shared_layers": shared, "vocabulary_size": tokenizer.get_vocab_size()}
        encoder = make_encoder(**vars(family_config(family, **changes)), standard_deviation=0.1)
        prefix = registry.load("edgebert.encoders", family).PREFIX
        config = transformers.AutoConfig.for_model(**settings_of(encoder.config))
        model = transformers.AutoModel.from_config(config)
        weights = {name.removeprefix(prefix): tensor for name, tensor in checkpoint_weights(encoder).items()}
        model.load_state_dict(weights, strict=False)
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes(tokenizer.to_str().encode())
        return folder

    return make


@pytest.fixture(scope="module")
def sources(make_source: Callable[..., Path], tiny_tokenizer: bytes) -> dict[str, Path]:
    """A source of each family, with a vocabulary of its usual kind."""
    words = ["good", "film", "boring", "funny", "the", "plot"]
    word_pieces = Tokenizer.from_buffer(tiny_tokenizer)
    kinds = {
        "roberta": _byte_level(words),
        "xlm_roberta": _unigram(words, ("<s>", "<pad>", "</s>", "<unk>")),
        "albert": _unigram(words, ("<pad>", "<unk>", "[CLS]", "[SEP]")),
    }
    return {family: make_source(family, kinds.get(family, word_pieces)) for family in FAMILIES}


def _config(method: str, model: Path, data: Path) -> RunConfig:
    """The method's own configuration, made small."""
    config = read_config(ROOT / "export_configs" / f"{method}_sst2.yaml")
    changes: dict[str, Any] = {
        "model": str(model),
        "data": str(data),
        "columns": {},
        "labels": None,
        "max_length": 24,
        "batch_size": 8,
        "stage_epochs": tuple(min(epochs, 1.0) for epochs in config.train.stage_epochs),
        "tuning_rows": 16,
        "calibration_rows": min(config.train.calibration_rows, 16),
        "precision": "fp32",
    }
    return msgspec.structs.replace(
        config,
        train=msgspec.structs.replace(config.train, **changes),
        export=msgspec.structs.replace(config.export, verify_samples=8, whole_model=True),
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(pair, marks=[pytest.mark.long] if pair in LONG else [], id="-".join(pair)) for pair in PAIRS],
)
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sources: dict[str, Path],
    sentiment_data: Path,
) -> tuple[Path, Path]:
    """A checkpoint of a family and a method, trained for two steps a stage, and its bundle, which export verified."""
    family, method = request.param
    folder = tmp_path_factory.mktemp("made")
    train_model(_config(method, sources[family], sentiment_data), folder / "checkpoint", max_steps=2)
    export_model(folder / "checkpoint", folder / "bundle")
    return folder / "checkpoint", folder / "bundle"


@pytest.fixture
def checkpoint(made: tuple[Path, Path]) -> Path:
    return made[0]


@pytest.fixture
def bundle(made: tuple[Path, Path]) -> Path:
    return made[1]


@pytest.fixture
def model(bundle: Path) -> Iterator[EdgeModel]:
    with EdgeModel.from_pretrained(bundle, threads=1) as opened:
        yield opened


def test_family_runs_under_every_policy(model: EdgeModel, texts: list[str]) -> None:
    some = [*texts[:9], ("a good film", "the plot"), "good"]
    encoded = model.encode(some)
    layers = model.manifest.encoder.layers

    for policy in (*model.manifest.operating_points, *model.manifest.policies):
        model.set_policy(policy)
        outcome = model.run_encoded(encoded, batch_size=4)
        alone = model.run_encoded(encoded, batch_size=1)

        assert np.isfinite(outcome.scores).all(), policy
        assert np.abs(outcome.scores - alone.scores).max() <= 1e-5, policy
        assert ((outcome.exit_layer >= 1) & (outcome.exit_layer <= layers)).all(), policy
        assert model.layer_rows(outcome.calls) == outcome.layers_run.sum(), policy


def test_family_bundle_says_what_its_checkpoint_says(checkpoint: Path, bundle: Path) -> None:
    model = load_checkpoint(checkpoint).model
    shape = model.encoder.config

    report = verify_bundle(bundle, reference=str(checkpoint), samples=8)

    facts = open_bundle(bundle).manifest.encoder
    assert report["parity"]["differing_decisions"] == 0
    assert report["parity"]["max_difference"] <= 1e-5
    assert (facts.family, facts.token_types, facts.max_length) == (shape.family, shape.token_types, 24)
    assert (facts.shared_layers, facts.embedding_size) == (shape.shared_layers, shape.embedding_size)


def test_family_graphs_take_only_what_the_family_has(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    has_segments = manifest.encoder.token_types > 1

    starts = [step for step in manifest.program if step.kind == "embed"]
    takers = {name for name, facts in manifest.files.items() if "token_type_ids" in facts.inputs}

    # A predictor of the first layer, linked into the embeddings, also reads the mask.
    own = [tuple(name for name in step.inputs if name != "attention_mask") for step in starts]
    assert own == [("input_ids", "token_type_ids")[: 1 + has_segments]]
    assert {"graphs/embed.onnx"} <= takers if has_segments else takers == set()
    for name in takers:
        session = onnxruntime.InferenceSession(bundle / name, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == list(manifest.files[name].inputs)


def test_family_layers_that_share_weights_are_one_file_and_one_session(model: EdgeModel) -> None:
    manifest = model.manifest
    shared = manifest.encoder.shared_layers

    layers = [step for step in manifest.program if step.kind == "layer" and step.part in ("whole", "fused")]
    graphs = [step.graph for step in layers if step.graph is not None]
    files = {name for name in manifest.files if name.startswith("graphs/layer")}

    assert (shared, len(files)) == ((2, 1) if manifest.encoder.family == "albert" else (1, 2))
    assert len(graphs) == 2
    assert set(graphs) == files <= set(model.graphs)


def test_family_segment_ids_do_not_reach_a_model_without_segments(model: EdgeModel) -> None:
    ids = np.full((2, 5), 4)
    ones = np.ones_like(ids)

    without, given = model.forward(ids).logits, model.forward(ids, token_type_ids=ones).logits

    assert np.array_equal(without, given) == (model.manifest.encoder.token_types < 2)
    if model.manifest.encoder.token_types == 2:
        with pytest.raises(DataError, match="token_type_ids: expected 0 to 1, got up to 2"):
            model.forward(ids, token_type_ids=2 * ones)


def test_family_of_the_rivals(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    values = {name: np.ones((2, 5), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}

    rival = open_model(Spec(side="torch", bundle=str(bundle)), manifest)
    read = inputs_of(rival, values)
    logits = rival(**{name: torch.from_numpy(value) for name, value in read.items()}).logits

    shape = build_encoder(rival.config.to_dict(), where="x").config
    assert (
        type(rival).__name__
        == registry.load("edgebert.encoders", manifest.encoder.family).CLASS_PREFIX + "ForSequenceClassification"
    )
    assert ("token_type_ids" in read) == (manifest.encoder.token_types > 1)
    assert logits.shape == (2, 2)
    assert {name: getattr(shape, name) for name in _SHAPE} == {name: getattr(manifest.encoder, name) for name in _SHAPE}
    assert (shape.activation, shape.max_positions) == (manifest.encoder.activation, 24)
    if manifest.method == "plain":
        whole.Side(Spec(side="whole", bundle=str(bundle))).run_batch(values)


def test_chinese_characters_need_no_spaces(make_source: Callable[..., Path], tmp_path: Path) -> None:
    source = make_source("bert", _chinese(), layers=1)
    rows = [f"这部电影很{word}\t{label}" for word, label in CHINESE.items()]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tsv").write_text("\n".join(["text\tlabel", *rows * 20]), encoding="utf-8")
    config = _config("plain", source, tmp_path / "data")
    train_model(config, tmp_path / "checkpoint", max_steps=4)
    export_model(tmp_path / "checkpoint", tmp_path / "bundle", settings=ExportConfig(whole_model=False))

    with EdgeModel.from_pretrained(tmp_path / "bundle", threads=1) as model:
        results = model(["这部电影很好。", "剧本烂", ("我看了", "不得了"), "é"])
        (row,) = model.encode(["这部电影很好"])

    assert [result.tokens for result in results] == [9, 5, 9, 3]
    assert 1 not in row.ids
    assert all(result.label in ("negative", "positive") for result in results)
