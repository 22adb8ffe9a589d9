"""The whole road of question answering: train, export, verify, run, evaluate and time a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
import yaml

from edgebert import EdgeModel, evaluate_bundle
from edgebert.bench import bench_bundles
from edgebert.checkpoint import load_checkpoint
from edgebert.config import RunConfig, TrainConfig
from edgebert.evaluation_table import evaluation_table
from edgebert.export import export_model
from edgebert.output import Reporter
from edgebert.questions import read_questions
from edgebert.training import train_model

Invoke = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent


class _Said(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def said() -> _Said:
    return _Said()


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, questions_data: Path, tiny_hf_folder: Path, said: _Said
) -> Path:
    """A `plain` checkpoint that has learned the tiny questions."""
    train = TrainConfig(
        model=str(tiny_hf_folder),
        data=str(questions_data),
        task="question_answering",
        task_settings={"overlap_tokens": 8, "max_question_tokens": 8, "max_answer_tokens": 4},
        max_length=40,
        batch_size=16,
        stage_epochs=(25.0,),
        learning_rate=4e-3,
        head_learning_rate_factor=2.0,
        tuning_rows=11,
        precision="fp32",
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "reader"
    train_model(RunConfig(method={"name": "plain"}, train=train), folder, reporter=said)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return export_model(checkpoint, tmp_path_factory.mktemp("bundles") / "reader").path


def test_train_learns_and_keeps_passages_together(said: _Said, bundle: Path, questions_data: Path) -> None:
    row = evaluate_bundle([bundle], [questions_data], split="test")["rows"][0]

    # A word at random is right once in 14 times; one of the two that a passage is asked for, every second time.
    assert row["metric"] > 0.4
    # 120 questions over 60 passages, some in several windows; 12 of them held out, as 11 would split a passage.
    assert said.lines[0].startswith("plain: ")
    assert ", 12 held out, 2 labels" in said.lines[0]
    assert int(said.lines[0].split()[1]) > 108


def test_evaluate_gives_both_metrics_per_question(bundle: Path, questions_data: Path) -> None:
    questions = read_questions(questions_data, split="test")

    result = evaluate_bundle([bundle], [questions_data / "test.json"], against=[str(bundle)], batch_size=4)

    row = result["rows"][0]
    with EdgeModel.from_pretrained(bundle) as model:
        answers = model.answer([q.text for q in questions], [str(q.text_pair) for q in questions])
    right = [a.text in {gold.text for gold in q.answers} for a, q in zip(answers, questions, strict=True)]
    assert (row["metric_name"], row["n"], row["n_rows"]) == ("f1", 24, sum(a.windows for a in answers))
    assert row["exact_match"] == pytest.approx(sum(right) / 24)
    assert row["exact_match"] <= row["metric"] <= 1
    assert row["ci_low"] <= row["metric"] <= row["ci_high"]
    assert row["agreement"] == 1.0
    assert row["mean_tokens"] == pytest.approx(sum(a.tokens for a in answers) / 24)
    assert row["against"]["difference"] == 0.0
    assert "+0.00 points" in evaluation_table(result)


def test_evaluate_one_by_one_times_questions_with_all_their_windows(bundle: Path, questions_data: Path) -> None:
    alone, together = (
        evaluate_bundle([bundle], [questions_data], split="test", batch_size=size)["rows"][0] for size in (1, 32)
    )

    assert alone["n_rows"] > alone["n"] == 24
    assert alone["metric"] == together["metric"]
    assert alone["p50_ms"] <= alone["p99_ms"]
    assert alone["flops_ratio"] == pytest.approx(together["flops_ratio"])


def test_evaluate_dpbert_between_its_policies(
    tmp_path: Path, questions_data: Path, tiny_hf_folder: Path, checkpoint: Path
) -> None:
    settings = load_checkpoint(checkpoint).facts.config.train
    train = TrainConfig(
        **{
            **{name: getattr(settings, name) for name in settings.__struct_fields__},
            "stage_epochs": (0.5, 0.5, 0.5, 0.5),
            "model": str(tiny_hf_folder),
        }
    )
    train_model(RunConfig(method={"name": "dpbert", "planner_width": 8}, train=train), tmp_path / "dp")
    made = export_model(tmp_path / "dp", tmp_path / "bundle")

    rows = evaluate_bundle([made.path], [questions_data], split="test", policies=["default", "never", "fixed"])["rows"]

    assert load_checkpoint(tmp_path / "dp").facts.operating_points["default"].policy == "bypass"
    assert [row["policy"] for row in rows] == ["default", "never", "fixed"]
    assert rows[1]["agreement"] == 1.0
    assert all(0 <= row["exact_match"] <= row["metric"] <= 1 for row in rows)


def test_checkpoint_opens_in_transformers(checkpoint: Path) -> None:
    model, report = transformers.AutoModelForQuestionAnswering.from_pretrained(checkpoint, output_loading_info=True)

    assert type(model).__name__ == "BertForQuestionAnswering"
    assert not report["missing_keys"]


def test_bench_of_lengths_and_of_questions(bundle: Path, questions_data: Path) -> None:
    lengths = bench_bundles([bundle], lengths=(8,), against="torch", repeats=1)
    texts = bench_bundles([bundle], data=questions_data, against="whole", repeats=1, max_texts=10)
    offline = bench_bundles([bundle], data=questions_data, scenario="offline", batches=(8,), repeats=1, max_texts=10)

    assert [row["seq_len"] for row in lengths["rows"]] == [8, 8]
    assert [row["n"] for row in (*texts["rows"], *offline["rows"])] == [10, 10, 10]


def test_run_questions(invoke: Invoke, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "passage.txt").write_text("a good film with a weak plot", encoding="utf-8")
    asked = ["--question", "which is good ?", "--question", "which is bad ?"]

    table = invoke("run", bundle, *asked, "--context", "a good film with a weak plot", "--top-k", 2)
    lines = invoke("run", bundle, *asked, "--context", f"@{tmp_path / 'passage.txt'}", "--format", "jsonl", "--trace")
    sheet = invoke("run", bundle, *asked, "--context", "a good film", "--format", "csv")

    assert (table[0], lines[0], sheet[0]) == (0, 0, 0), (table[2], lines[2], sheet[2])
    assert "| question " in table[1]
    rows = [json.loads(line) for line in lines[1].splitlines()]
    assert [row["question"] for row in rows] == ["which is good ?", "which is bad ?"]
    assert all("a good film with a weak plot"[row["start"] : row["end"]] == row["answer"] for row in rows)
    assert {"windows", "cost_ratio", "truncated"} <= set(rows[0])
    assert sheet[1].splitlines()[0] == "question,answer,score,start,end,windows,layers_run"


def test_run_files_of_questions(invoke: Invoke, bundle: Path, questions_data: Path, tmp_path: Path) -> None:
    line = '{"question": "which is good ?", "context": "a good film with a weak plot"}\n'
    (tmp_path / "asked.jsonl").write_text(line * 2, encoding="utf-8")

    answered = [
        invoke("run", bundle, "-i", questions_data / "test.json", "--json"),
        invoke("run", bundle, "-i", tmp_path / "asked.jsonl", "--json"),
        invoke("run", bundle, "-i", "-", "--json", stdin=line),
    ]

    assert [code for code, _, _ in answered] == [0, 0, 0]
    assert [len(json.loads(out)["rows"]) for _, out, _ in answered] == [24, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "READER", "a text"], "question_answering answers questions, and was given texts; use model.answer("),
        (["run", "READER", "--pair", "a ?", "b"], "question_answering answers questions, and was given texts"),
        (["run", "PLAIN", "--question", "a ?", "--context", "b"], "classification answers texts, and was given quest"),
        (["run", "READER", "--question", "a ?"], "a question needs a passage: give --question Q with --context TEXT"),
        (["run", "READER", "--context", "a"], "a question needs a passage"),
        (["run", "READER", "--question", "a ?", "--context", "@nothing.txt"], "nothing.txt: cannot read the file"),
        (["run", "READER", "a", "--question", "a ?", "--context", "b"], "give either texts, or --question and --co"),
        (["run", "READER", "-i", "-"], "stdin:1: expected {"),
        (["run", "PLAIN", "-i", "-", "--columns", "text=a"], "--columns: names the columns of a table, got lines of"),
        (["run", "PLAIN", "a text", "--columns", "text=a"], "--columns: names the columns of a table, got texts; give"),
        (["run", "READER", "-i", "DATA"], "is a folder; name a file of it ("),
        (["eval", "READER", "--data", "TABLE"], "expected SQuAD's .json or a .jsonl of questions, got .tsv"),
        (["eval", "READER", "--data", "DATA", "--columns", "text=a"], "columns: questions are read from SQuAD's JSON"),
        (["eval", "READER", "PLAIN", "--data", "DATA"], "expected bundles of one task"),
        (["bench", "READER", "PLAIN", "--data", "DATA"], "expected bundles that are asked alike"),
    ],
)
def test_command_line_refusals(
    invoke: Invoke,
    reader_bundle: Path,
    plain_bundle: Path,
    questions_data: Path,
    sentiment_data: Path,
    arguments: list[str],
    message: str,
) -> None:
    places = {"READER": reader_bundle, "PLAIN": plain_bundle, "DATA": questions_data}
    places["TABLE"] = sentiment_data / "test.tsv"

    code, out, error = invoke(*(places.get(argument, argument) for argument in arguments), stdin="plain text\n")

    assert (code, out) == (2, "")
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("method", ["dact_bert", "deebert", "fastbert", "geep", "pabee"])
def test_command_line_method_that_refuses(invoke: Invoke, tmp_path: Path, method: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"method": {"name": method}, "train": {"task": "question_answering"}}))

    # Nothing is read before: the data does not exist.
    code, _, error = invoke("train", "-c", path, "-o", tmp_path / "out", "--data", tmp_path / "nothing")

    assert code == 2
    assert error.startswith(f"error: {method} does not do question_answering: its ")
    assert "; use dpbert or " in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["plain_squad.yaml", "dpbert_squad.yaml"])
def test_shipped_configuration_trains(
    invoke: Invoke, tmp_path: Path, questions_data: Path, tiny_hf_folder: Path, name: str
) -> None:
    options = ["--data", questions_data, "--model", tiny_hf_folder, "--max-steps", 2, "--set", "train.tuning_rows=20"]

    trained = invoke("train", "-c", ROOT / "export_configs" / name, "-o", tmp_path / "ckpt", *options)
    exported = invoke("export", tmp_path / "ckpt", tmp_path / "bundle", "--verify-samples", 8)
    verified = invoke("verify", tmp_path / "bundle", "--reference", tmp_path / "ckpt", "--samples", 8)

    assert [trained[0], exported[0], verified[0]] == [0, 0, 0], [trained[2], exported[2], verified[2]]
    assert "run " in exported[2]
    assert '--question "a question" --context "its passage"' in exported[2]


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl"])
def test_command_line_empty_stdin(invoke: Invoke, plain_bundle: Path, form: str) -> None:
    code, out, error = invoke("run", plain_bundle, "-i", "-", "--format", form, stdin="")

    assert (code, out) == (2, "")
    assert error == "error: stdin:1: expected at least one line, got the end; give texts, or -i FILE.\n"
