import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from edgebert.checkpoint import Checkpoint, load_checkpoint
from edgebert.config import RunConfig, TrainConfig
from edgebert.data import Example, read_examples, texts_of
from edgebert.errors import ConfigError, DataError, EdgeBertError
from edgebert.methods._program import Batch, Stage
from edgebert.methods.geep import Geep
from edgebert.output import Advance, Reporter
from edgebert.tasks import classification
from edgebert.text import TextEncoder
from edgebert.training import loop, run, train_model
from edgebert.training.rows import Rows

METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "plain": ({"name": "plain"}, (8.0,)),
    "dact_bert": ({"name": "dact_bert", "trunk": 16}, (6.0, 6.0)),
    "fastbert": ({"name": "fastbert"}, (6.0, 6.0)),
    "deebert": ({"name": "deebert"}, (6.0, 6.0)),
    "pabee": ({"name": "pabee"}, (8.0,)),
    "geep": ({"name": "geep"}, (24.0,)),
    "dpbert": ({"name": "dpbert", "planner_width": 16}, (6.0, 6.0, 8.0, 8.0)),
    "dynamic_tinybert": (
        {"name": "dynamic_tinybert", "search_evaluations": 4, "layer_drop": 0.0},
        (6.0, 0.0, 0.0, 8.0),
    ),
}
CALIBRATION_ROWS = {"geep": 40}


class _Recorder(Reporter):
    """Keeps what it is told, and can break off a training after some steps."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.said: list[str] = []
        self.steps: dict[str, int] = {}
        self.moves: dict[str, int] = {}
        self.losses: dict[str, list[float]] = {}
        self._left = stop_after

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextlib.contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        def advance(steps: int, note: str) -> None:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise KeyboardInterrupt
            self.steps[title] = self.steps.get(title, 0) + steps
            self.moves[title] = self.moves.get(title, 0) + 1
            if note.startswith("loss "):
                self.losses.setdefault(title, []).append(float(note.removeprefix("loss ")))

        yield advance


@pytest.fixture
def make_config(tiny_hf_folder: Path, sentiment_data: Path) -> Callable[..., RunConfig]:
    def make(method: str = "plain", **changes: Any) -> RunConfig:
        settings, epochs = METHODS[method]
        train = TrainConfig(
            model=str(tiny_hf_folder),
            data=str(sentiment_data),
            max_length=32,
            batch_size=16,
            stage_epochs=epochs,
            learning_rate=2e-3,
            head_learning_rate_factor=3.0,
            tuning_rows=40,
            calibration_rows=CALIBRATION_ROWS.get(method, 0),
            precision="fp32",
        )
        return RunConfig(method=settings, train=msgspec.structs.replace(train, **changes))

    return make


def _weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return checkpoint.model.state_dict()  # type: ignore[attr-defined,no-any-return]


def _same(first: Checkpoint, second: Checkpoint, prefix: str = "") -> bool:
    other = _weights(second)
    return all(torch.equal(tensor, other[n]) for n, tensor in _weights(first).items() if n.startswith(prefix))


def _accuracy(checkpoint: Checkpoint, data: Path) -> float:
    """Full-depth accuracy on the test split."""
    examples = read_examples(data, split="test")
    text = TextEncoder(checkpoint.tokenizer["tokenizer.json"], max_length=32, pad_token_id=0)
    values = {name: torch.from_numpy(value) for name, value in text.pad(text.encode(texts_of(examples))).items()}
    with torch.no_grad():
        best = checkpoint.model.eval()(**values).argmax(1).tolist()  # type: ignore[attr-defined]
    return sum(checkpoint.facts.labels[i] == e.label for i, e in zip(best, examples, strict=True)) / len(examples)


@pytest.mark.parametrize("method", METHODS)
def test_train_learns_and_its_checkpoint_opens(
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    sentiment_data: Path,
    capfd: pytest.CaptureFixture[str],
    method: str,
) -> None:
    recorder = _Recorder()

    trained = train_model(make_config(method), tmp_path / "out", reporter=recorder)

    opened = load_checkpoint(tmp_path / "out")
    assert all(losses[-1] < losses[0] for losses in recorder.losses.values()), recorder.losses
    assert len(recorder.losses) == sum(epochs > 0 for epochs in METHODS[method][1])
    assert _accuracy(opened, sentiment_data) >= 0.85
    assert _same(trained, opened)
    assert opened.facts == trained.facts
    assert opened.facts.labels == ("negative", "positive")
    assert "default" in opened.facts.operating_points
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert capfd.readouterr().out == ""


def test_train_reports_stages_and_operating_points(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    recorder = _Recorder()

    train_model(make_config("dact_bert", stage_epochs=(0.5, 1.0)), tmp_path / "out", reporter=recorder)

    # 160 rows in batches of 16 are 10 steps an epoch.
    assert recorder.steps == {"train fine_tune": 5, "train joint": 10}
    assert recorder.said[0] == "dact_bert: 160 rows to train on, 40 held out, 2 labels"
    assert [line.split(":")[0] for line in recorder.said[-2:]] == [
        "operating point default",
        "operating point confidence",
    ]


@pytest.mark.parametrize("calibration_rows", [30, 50])
def test_train_tunes_and_calibrates_on_rows_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    sentiment_data: Path,
    tiny_tokenizer: bytes,
    calibration_rows: int,
) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {"train": [], "calibrate": [], "tune": []}
    calibrate, points = Geep.calibrate, run.choose_operating_points

    def train_stage(model: Any, stage: Any, rows: Any, **_: Any) -> None:
        assert not seen["calibrate"]
        seen["train"] += [tuple(row.ids) for row in rows.encoded]

    def record(self: Geep, batches: Iterable[Batch], special_ids: Any) -> None:
        kept = list(batches)
        pairs = [pair for batch in kept for pair in zip(batch.input_ids, batch.attention_mask, strict=True)]
        seen["calibrate"] += [tuple(ids[mask == 1].tolist()) for ids, mask in pairs]
        assert not self.training
        assert not torch.is_grad_enabled()
        calibrate(self, kept, special_ids)

    def choose(model: Any, steps: Any, rows: Any, **options: Any) -> Any:
        seen["tune"] += [tuple(row.ids) for row in rows.encoded]
        return points(model, steps, rows, **options)

    monkeypatch.setattr(run, "train_stage", train_stage)
    monkeypatch.setattr(run, "choose_operating_points", choose)
    monkeypatch.setattr(Geep, "calibrate", record)

    trained = train_model(make_config("geep", calibration_rows=calibration_rows), tmp_path / "out")

    text = TextEncoder(tiny_tokenizer, max_length=32, pad_token_id=0)
    everything = [tuple(row.ids) for row in text.encode(texts_of(read_examples(sentiment_data, split="train")))]
    assert {name: len(rows) for name, rows in seen.items()} == {
        "train": 160 - calibration_rows,
        "calibrate": calibration_rows,
        "tune": 40,
    }
    assert sorted(row for rows in seen.values() for row in rows) == sorted(everything)
    assert isinstance(trained.model, Geep)
    assert trained.model.table.rows.sum() == calibration_rows
    assert trained.model.training


def test_whole_texts_are_held_out_and_their_parts_left_out(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    good, bad = ["charming", "clever", "fresh", "funny", "moving"], ["awful", "dull", "hollow", "stale", "weak"]
    sentences = [f"{first} film of a {second} camera" for first in good + bad for second in good + bad]
    parts = [sentence.removesuffix(" camera") for sentence in sentences]
    rows = [f"{text}\t{'positive' if text.split()[0] in good else 'negative'}" for text in sentences + parts]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    config = make_config(data=str(tmp_path / "data"), held_out="whole_texts", tuning_rows=10, stage_epochs=(0.1,))
    train_model(config, tmp_path / "checkpoint", reporter=Listener())

    assert said[0] == "plain: 180 rows to train on, 10 held out with 10 parts of them, 2 labels"


def test_whole_texts_of_a_vocabulary_whose_tokens_hold_the_space_before_a_word() -> None:
    letters, word = sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120film"  # the mark of a space, as it spells it
    merges = [(word[:end], word[end]) for end in range(1, len(word))]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(word[:end] for end in range(2, len(word) + 1))]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = TextEncoder(tokenizer.to_str().encode(), max_length=48, pad_token_id=1)
    examples = [Example(sentence, label="good") for sentence in ("a film to see", "film to see", "film", "a dog")]

    (tuning, *_), parts = run._held_out(
        examples, classification, text, TrainConfig(held_out="whole_texts", tuning_rows=1)
    )

    assert {example.text for example in tuning} < {"a film to see", "a dog"}
    assert parts == (2 if tuning[0].text == "a film to see" else 0)


def test_distinct_texts_are_counted_that_training_has_not_seen() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 3, "film": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = TextEncoder(tokenizer.to_str().encode(), max_length=48, pad_token_id=1)
    spelt = ["good film", "good  film", "bad film", "film", "bad", "good", "bad film "] * 3
    examples = [Example(sentence, label="good") for sentence in spelt]
    train = TrainConfig(held_out="distinct_texts", tuning_rows=4, calibration_rows=4)

    parts, left_out = run._held_out(examples, classification, text, train)

    tuning, calibration, rest = ({" ".join(example.text.split()) for example in part} for part in parts)
    assert not tuning & calibration | tuning & rest | calibration & rest
    assert left_out == 0
    assert sum(map(len, parts)) == len(examples)


@pytest.mark.parametrize("held_out", ["distinct_texts", "whole_texts"])
def test_texts_that_are_told_apart_refused_of_questions(
    make_config: Callable[..., RunConfig], questions_data: Path, tmp_path: Path, held_out: str
) -> None:
    config = make_config(data=str(questions_data), task="question_answering", held_out=held_out)

    with pytest.raises(ConfigError, match=r"^train\.held_out: question_answering is asked questions; expected rows, "):
        train_model(config, tmp_path / "checkpoint")


def test_train_resumed_calibrates_anew(
    monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config("geep", stage_epochs=(1.0,))
    whole = train_model(config, tmp_path / "whole")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "choose_operating_points", fail)
        with pytest.raises(KeyboardInterrupt):
            train_model(config, tmp_path / "out")

    resumed = train_model(config, tmp_path / "out", is_resumed=True)

    assert _same(whole, resumed)
    assert resumed.facts == whole.facts


@pytest.mark.parametrize(
    ("method", "rows", "message"),
    [
        ("geep", 0, "geep counts something on rows that training has not seen; expected 1 or more, got 0."),
        ("plain", 10, "plain has nothing to calibrate; expected 0, got 10."),
    ],
)
def test_train_calibration_rows_refused(
    make_config: Callable[..., RunConfig], tmp_path: Path, method: str, rows: int, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        train_model(make_config(method, calibration_rows=rows), tmp_path / "out")

    assert str(raised.value) == f"train.calibration_rows: {message}"


def test_train_everything_held_out(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    held_out = r"200 training rows, of which train\.tuning_rows=40 and train\.calibration_rows=160 would be held out"

    with pytest.raises(DataError, match=held_out):
        train_model(make_config("geep", calibration_rows=160), tmp_path / "out")


def test_train_max_steps_bounds_every_stage(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    recorder = _Recorder()

    train_model(make_config("dact_bert"), tmp_path / "out", max_steps=2, reporter=recorder)

    assert recorder.steps == {"train fine_tune": 2, "train joint": 2}


def test_train_same_seed_same_weights(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config("dact_bert", stage_epochs=(0.5, 0.5))

    first, second, other = (
        train_model(config, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    assert _same(first, second)
    assert not _same(first, other)


def test_train_first_stage_leaves_the_other_units_alone(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    untrained = train_model(make_config("dact_bert", stage_epochs=(0.0, 0.0)), tmp_path / "a")

    tuned = train_model(make_config("dact_bert", stage_epochs=(1.0, 0.0)), tmp_path / "b")

    assert _same(untrained, tuned, "units.0.")
    assert _same(untrained, tuned, "units.1.")
    assert not _same(untrained, tuned, "units.2.")
    assert not _same(untrained, tuned, "encoder.layers.0.")
    assert all(parameter.requires_grad for parameter in tuned.model.parameters())  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
@pytest.mark.parametrize("stop_after", [3, 7, 12])
def test_train_resumed_gives_the_uninterrupted_weights(
    monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., RunConfig], tmp_path: Path, stop_after: int
) -> None:
    arguments = loop._arguments

    def save_often(*given: Any) -> Any:
        made = arguments(*given)
        made.save_steps = 2
        return made

    monkeypatch.setattr(loop, "_arguments", save_often)
    config = make_config("dact_bert", stage_epochs=(1.0, 1.0))
    whole = train_model(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_model(config, tmp_path / "out", reporter=_Recorder(stop_after=stop_after))
    assert not (tmp_path / "out").exists()
    recorder = _Recorder()

    resumed = train_model(config, tmp_path / "out", is_resumed=True, reporter=recorder)

    assert _same(whole, resumed)
    assert resumed.facts == whole.facts
    # It goes on from the last saved step, an even one, of the stage it was in.
    done = {"train fine_tune": min(stop_after, 10) // 2 * 2, "train joint": max(stop_after - 10, 0) // 2 * 2}
    assert recorder.steps == {stage: 10 for stage, steps in done.items() if steps < 10}
    assert recorder.moves == {stage: 10 - steps + (steps > 0) for stage, steps in done.items() if steps < 10}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(
    ("is_resumed", "has_checkpoint", "calls"), [(False, False, 1), (False, True, 1), (True, False, 1), (True, True, 0)]
)
def test_train_stage_prepares_unless_it_goes_on(
    tmp_path: Path, is_resumed: bool, has_checkpoint: bool, calls: int
) -> None:
    model = torch.nn.Linear(1, 1)
    called: list[str] = []
    stage = Stage(name="x", groups=[], loss=lambda batch: torch.zeros(()), before=lambda: called.append("before"))
    if has_checkpoint:
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}", encoding="utf-8")

    loop.train_stage(
        model,
        stage,
        Rows([], np.zeros(0, np.int64), None),  # type: ignore[arg-type]
        config=TrainConfig(),
        epochs=1.0,
        seed=0,
        folder=tmp_path,
        max_steps=0,
        is_resumed=is_resumed,
        reporter=Reporter(),
    )

    assert called == ["before"] * calls


def test_train_beside_an_interrupted_one(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config("dact_bert", stage_epochs=(0.2, 1.0))
    with pytest.raises(KeyboardInterrupt):
        train_model(config, tmp_path / "out", reporter=_Recorder(stop_after=4))

    with pytest.raises(EdgeBertError, match=r"out: an interrupted training is beside it; go on with --resume or start"):
        train_model(config, tmp_path / "out")

    recorder = _Recorder()
    train_model(config, tmp_path / "out", force=True, reporter=recorder)
    assert recorder.steps == {"train fine_tune": 2, "train joint": 10}


def test_train_resumed_without_an_interrupted_one(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    recorder = _Recorder(stop_after=0)

    with pytest.raises(KeyboardInterrupt):
        train_model(make_config("dact_bert"), tmp_path / "out", is_resumed=True, reporter=recorder)

    assert recorder.said[-1] == f"{tmp_path / 'out'}: nothing to resume; starting"


@pytest.mark.parametrize("max_steps", [None, 5, 7])
def test_train_resumed_with_other_steps(
    make_config: Callable[..., RunConfig], tmp_path: Path, max_steps: int | None
) -> None:
    config = make_config("dact_bert", stage_epochs=(0.2, 1.0))
    with pytest.raises(KeyboardInterrupt):
        train_model(config, tmp_path / "out", max_steps=6, reporter=_Recorder(stop_after=4))

    with pytest.raises(EdgeBertError, match="had another configuration, seed, --max-steps or data; give the same ones"):
        train_model(config, tmp_path / "out", max_steps=max_steps, is_resumed=True)

    recorder = _Recorder()
    train_model(config, tmp_path / "out", max_steps=6, is_resumed=True, reporter=recorder)
    assert recorder.steps == {"train joint": 6}


def test_train_resume_with_nothing_to_resume(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    recorder = _Recorder()

    train_model(make_config(), tmp_path / "out", max_steps=1, is_resumed=True, reporter=recorder)

    assert recorder.steps == {"train fine_tune": 1}


def test_train_in_bf16_keeps_fp32_weights(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    trained = train_model(make_config("dact_bert", precision="bf16"), tmp_path / "out", max_steps=2)

    assert {tensor.dtype for tensor in _weights(trained).values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in _weights(trained).values())


def test_train_plain_with_fewer_layers(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = msgspec.structs.replace(make_config(), method={"name": "plain", "layers": 1, "pool": "mean"})

    train_model(config, tmp_path / "out", max_steps=1)

    assert load_checkpoint(tmp_path / "out").model.encoder.config.layers == 1


@pytest.mark.parametrize(("pool", "is_taken"), [("mean", True), ("cls", False)])
def test_train_starts_with_the_head_of_a_fine_tuned_checkpoint(
    make_config: Callable[..., RunConfig], tmp_path: Path, pool: str, is_taken: bool
) -> None:
    config = msgspec.structs.replace(make_config(stage_epochs=(1.0,)), method={"name": "plain", "pool": "mean"})
    plain = train_model(config, tmp_path / "plain", max_steps=2)
    train = msgspec.structs.replace(config.train, model=str(tmp_path / "plain"), stage_epochs=(0.0,) * 4)
    config = msgspec.structs.replace(config, method={"name": "dpbert", "pool": pool}, train=train)

    made = train_model(config, tmp_path / "dpbert", seed=1)

    theirs = plain.model.state_dict()
    own = made.model.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs if name.startswith("encoder."))
    taken = [torch.equal(own[name], theirs[name]) for name in theirs if name.endswith("weight") and "head." in name]
    assert taken
    assert all(taken) == is_taken


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"stage_epochs": (1.0,)},
            ConfigError,
            r"^train\.stage_epochs: dact_bert has the stages fine_tune, joint, so expected 2 numbers, got \(1\.0,\)",
        ),
        ({"data": None}, ConfigError, r"^train\.data: expected a folder or hub id; give one with --data"),
        ({"tuning_rows": 200}, DataError, r"sentiment: 200 training rows, of which train\.tuning_rows=200 would be"),
        ({"task": "clasification"}, ConfigError, r"^unknown task 'clasification'\. Did you mean 'classification'\?$"),
        ({"model": "./nothing"}, ConfigError, r"^\./nothing: no such checkpoint folder"),
        ({"columns": {"txt": "a"}}, ConfigError, r"^columns: unknown field 'txt'\. Did you mean 'text'\?$"),
    ],
)
def test_train_refused(
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[EdgeBertError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        train_model(make_config("dact_bert", **changes), tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "dact"}, r"^unknown method 'dact'\. Did you mean 'dact_bert'\?$"),
        ({"name": "plain", "layers": 9}, r"^method\.layers: expected 1 to 3, got 9\.$"),
    ],
)
def test_train_method_refused(
    make_config: Callable[..., RunConfig], tmp_path: Path, method: dict[str, Any], message: str
) -> None:
    config = msgspec.structs.replace(make_config(), method=method)

    with pytest.raises(ConfigError, match=message):
        train_model(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "plain", "pol": "cls"}, "config: unknown key 'method.pol'. Did you mean 'pool'?"),
        ({"name": "pabee", "distillation": -1.0}, "config: method.distillation: expected 0 or more, got -1.0"),
    ],
)
def test_train_method_refused_before_anything_is_read(
    make_config: Callable[..., RunConfig], tmp_path: Path, method: dict[str, Any], message: str
) -> None:
    config = make_config(str(method["name"]), data="./nothing", model="./nothing")

    with pytest.raises(ConfigError) as raised:
        train_model(msgspec.structs.replace(config, method=method), tmp_path / "out")

    assert str(raised.value) == message


def test_train_existing_checkpoint_without_force(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()

    with pytest.raises(EdgeBertError, match="out: exists already; use --force to replace it"):
        train_model(make_config(), tmp_path / "out")
