"""No option, environment variable or stream makes a command end otherwise than with data, or one line of an error."""

import importlib
import io
import json
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgebert import cli
from edgebert.text import readable
from tests.faults._judge import check_message, guarded
from tests.faults._options import cases
from tests.faults._texts import texts

Rounds = Callable[[int, int], int]
Record = Callable[[str, object], None]
Invoke = Callable[..., tuple[int, str, str]]

COMMANDS: dict[str, tuple[str, ...]] = {
    "bench": ("BUNDLE", "--repeats", "1", "-l", "4"),
    "convert": ("nothing", "OUT"),
    "demo": ("-o", "/dev/null/x"),
    "eval": ("BUNDLE", "--data", "DATA"),
    "export": ("./nothing", "OUT"),
    "info": ("BUNDLE",),
    "prepare": ("BUNDLE",),
    "quantize": ("BUNDLE", "OUT", "--force"),
    "report": ("DATA", "-o", "OUT"),
    "run": ("BUNDLE", "good film"),
    "scale": ("BUNDLE", "-l", "4", "-b", "1", "--repeats", "1"),
    "train": ("-c", "CONFIG", "-o", "OUT"),
    "sign": ("BUNDLE", "--private-key", "./nothing"),
    "tune": ("BUNDLE", "--data", "DATA", "-o", "OUT", "--force"),
    "verify": ("BUNDLE",),
}
"""A call of each command that ends soon; where it takes processes or training, with an error."""

SLOW = {"bench": "./nothing", "quantize": "./nothing"}
"""What stands for the bundle in `make test`."""

FULL = {"bench": 25, "quantize": 60, "scale": 100, "tune": 100, "eval": 200}
"""Most values in `make faults`, where a value that is taken is work; all of them where it is none."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing be looked for on a network."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("there is no network")

    monkeypatch.setattr(importlib.import_module("datasets"), "load_dataset", refuse)
    monkeypatch.setattr(importlib.import_module("huggingface_hub"), "snapshot_download", refuse)
    monkeypatch.setattr(importlib.import_module("edgebert.hub"), "is_reached", lambda *_: False)
    monkeypatch.setattr(importlib.import_module("edgebert.tables"), "is_reached", lambda *_: False)


@pytest.fixture
def places(tmp_path: Path, dact_bundle: Path, tiny_hf_folder: Path) -> dict[str, str]:
    data, config = tmp_path / "data.tsv", tmp_path / "config.yaml"
    data.write_text("text\tlabel\n" + "a good film\tpositive\na dull one\tnegative\n" * 3, encoding="utf-8")
    config.write_text(
        f"method: {{name: plain}}\ntrain: {{model: '{tiny_hf_folder}', data: /nowhere, max_length: 16}}\n",
        encoding="utf-8",
    )
    return {"BUNDLE": str(dact_bundle), "DATA": str(data), "CONFIG": str(config), "OUT": str(tmp_path / "out")}


def test_every_command_is_tried() -> None:
    assert sorted(COMMANDS) == sorted(cli.cli.commands)


@pytest.mark.parametrize("command", [name for name in COMMANDS if any(cases(cli.cli.commands[name]))])
@pytest.mark.usefixtures("offline")
def test_any_value_of_any_option_is_taken_or_refused(
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    places: dict[str, str],
    command: str,
    rounds: Rounds,
    record_property: Record,
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, codes = random.Random(command), Counter[int]()
    every = [case for case in cases(cli.cli.commands[command]) if (command, case[0]) != ("demo", "--output")]
    is_short = rounds(1, 0) == 1
    tried = rng.sample(every, min(len(every), rounds(12, FULL.get(command, 1000))))
    if command in SLOW and is_short:
        places = {**places, "BUNDLE": SLOW[command]}
    base = [places.get(part, part) for part in COMMANDS[command]]
    for flag, value in tried:
        by_environment = rng.random() < 0.4 and value != ""
        with pytest.MonkeyPatch.context() as patch, guarded(600):
            if by_environment:
                patch.setenv(f"EDGEBERT_{command}_{flag[2:]}".replace("-", "_").upper(), value)
            code, out, err = invoke(command, *base, *([] if by_environment else [f"{flag}={value}"]))
        _check(f"{command} {flag}={value!a:.60}", code, out, err)
        codes[code] += 1
    record_property(
        "options", f"{sum(codes.values())} tried: {codes[0]} taken, {sum(codes.values()) - codes[0]} refused"
    )


def _check(name: str, code: int, out: str, err: str) -> None:
    """Checks that a command did its work, or said in one line why not."""
    assert "Traceback" not in err, f"{name}: {err}"
    assert "(a bug" not in err, f"{name}: {err}"
    assert code in (0, 1, 2, 3, 4, 5), f"{name}: {code}"
    if code:
        last = err.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("error: "), f"{name}: {err}"
        check_message(name, last)
        assert code == 4 or not out, f"{name}: {out[:200]}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("",),
        ("\0",),
        ("rnu",),
        ("\x1b[2J",),
        ("\udcff",),
        ("-x",),
        ("--",),
        ("run",),
        ("run", ""),
        ("run", "\0", "a"),
        ("run", "x" * 5000, "a"),
        ("run", "/dev/zero", "a"),
        ("run", "/dev/null", "a"),
        ("info", "\udcff\x1b"),
        ("verify", "/"),
        ("report", "/dev/zero", "-o", "x.html"),
        ("report", "/", "-o", "x.html"),
        ("train", "-c", "/dev/zero", "-o", "x"),
        ("train", "-c", "/", "-o", "x"),
        ("export", "/dev/zero", "x"),
        ("export", "random:\udcff", "x", "--method", "\0"),
        ("convert", "/dev/zero", "x"),
        ("convert", "/", "x"),
        ("run", "BUNDLE", "--context", "@/dev/zero", "--question", "a"),
        ("run", "BUNDLE", "--context", "@/", "--question", "a"),
        ("run", "BUNDLE", "-i", "/dev/zero"),
        ("run", "BUNDLE", "-i", "/"),
    ],
    ids=ascii,
)
def test_arguments_that_are_none(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dact_bundle: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    with guarded():
        code, out, err = invoke(*[dact_bundle if part == "BUNDLE" else part for part in arguments])

    _check(str(arguments), code, out, err)
    assert code or arguments in [("--",)]


FORMS = ("table", "csv", "json", "jsonl")


@pytest.mark.parametrize("task", ["texts", "questions"])
def test_any_bytes_on_stdin_are_answered_or_refused(
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    dact_bundle: Path,
    reader_bundle: Path,
    rounds: Rounds,
    record_property: Record,
) -> None:
    rng, drawn = random.Random(31), texts(random.Random(32))
    bundle = dact_bundle if task == "texts" else reader_bundle
    answered, count = 0, rounds(24, 600)
    for number in range(count):
        given = [_line(rng, [text for _, text in islice(drawn, 2)], task) for _ in range(rng.randint(1, 5))]
        data = rng.choice((b"\n", b"\r\n")).join(given) + rng.choice((b"", b"\n"))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
        form = rng.choice(FORMS)
        with guarded():
            code, out, err = invoke("run", bundle, "-i", "-", "--format", form, "--trace", "--top-k", "2")
        assert "(a bug" not in err, (data, err)
        if code == 0:
            _check_form(form, out, rows=len(data.removesuffix(b"\n").split(b"\n")))
            answered += 1
        else:
            assert err.startswith("error: stdin:"), (data, err)
            check_message(str(number), err.rstrip("\n"))
    assert answered > count / 10
    record_property("inputs", f"{answered} of {count} answered, the others refused with their line")


def _line(rng: random.Random, drawn: list[str], task: str) -> bytes:
    """Returns a line of stdin that may be damaged."""
    text = " ".join(drawn).replace("\n", " ")
    if task == "questions":
        text = json.dumps(
            {"question": readable(drawn[0]), "context": readable(drawn[1])}, ensure_ascii=rng.random() < 0.5
        )
    data = text.encode("utf-8", "surrogatepass") or b"a"
    if rng.random() < (0.4 if task == "texts" else 0.1):
        place = rng.randrange(len(data))
        data = data[:place] + bytes([rng.choice((0, 0xC3, 0xFF, 0xED, 0x22, 0x1B))]) + data[place + 1 :]
    return data.replace(b"\n", b" ")


def _check_form(form: str, out: str, *, rows: int) -> None:
    """Checks that an output is of its form, whatever the texts were."""
    if form == "json":
        assert len(json.loads(out)["rows"]) == rows
    elif form == "jsonl":
        assert [sorted(json.loads(line)) for line in out.rstrip("\n").split("\n")]
        assert out.count("\n") == rows
    elif form == "table":
        assert out.count("\n") == rows + 2
        assert not [c for c in out if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\n"], ascii(out)
        assert not [c for c in out if c in "\u200e\u200f\u202a\u202b\u202d\u202e\u2066\u2067\u2069"], ascii(out)


def test_no_text_steers_a_terminal(invoke: Invoke, dact_bundle: Path) -> None:
    _, out, _ = invoke("run", dact_bundle, "\x1b]0;owned\x07\x1b[2Jgood", "a\rb\u202ec", "one\ntwo | three")

    assert "\x1b" not in out
    assert "\r" not in out
    assert "\u202e" not in out
    assert r"\x1b]0;owned\x07\x1b[2Jgood" in out
    assert r"one two \| three" in out


def _edgebert(*arguments: Any, before: str = "", after: str = "", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs `edgebert` in a process of its own, in a shell that redirects its streams."""
    environment = {**os.environ, **options.pop("environment", {})}
    shell = f'{before} "$0" -m edgebert.cli "$@" {after}'
    return subprocess.run(
        ["bash", "-c", shell, sys.executable, *arguments],
        capture_output=True,
        env=environment,
        check=False,
        timeout=300,
        **options,
    )


def _line_of(result: subprocess.CompletedProcess[bytes]) -> str:
    assert b"Traceback" not in result.stderr, result.stderr
    assert b"(a bug" not in result.stderr, result.stderr
    return result.stderr.decode().rstrip("\n").rpartition("\n")[2]


def test_the_same_bytes_answer_alike_as_argument_and_on_stdin(dact_bundle: Path) -> None:
    data = "a café film \ufeff".encode()
    given = _edgebert("run", str(dact_bundle), data, "--format", "jsonl")
    piped = _edgebert("run", str(dact_bundle), "-i", "-", "--format", "jsonl", input=data + b"\n")

    assert given.returncode == piped.returncode == 0, given.stderr
    assert given.stdout == piped.stdout
    assert json.loads(given.stdout)["text"] == "a café film \ufeff"


def test_bytes_that_are_not_utf_8_are_refused_as_argument_and_on_stdin(dact_bundle: Path) -> None:
    given = _edgebert("run", str(dact_bundle), b"a caf\xe9 film")
    piped = _edgebert("run", str(dact_bundle), "-i", "-", input=b"good\na caf\xe9 film\n")

    assert given.returncode == piped.returncode == 2
    assert _line_of(given).endswith("expected UTF-8, got the byte 0xe9; write it as UTF-8.")
    assert _line_of(piped) == "error: stdin:2: expected UTF-8, got the byte 0xe9; write it as UTF-8."


@pytest.mark.parametrize(
    ("redirected", "code", "message"),
    [
        ("<&-", 2, "error: stdin: is closed"),
        ("< <(head -c 40000000 /dev/zero)", 2, "error: stdin:1: expected lines of at most "),
        ("< <(printf 'good\\0film\\n\\n')", 0, ""),
        ("< /dev/null", 2, "error: stdin:1: expected at least one line"),
        (">&- < <(echo good)", 0, ""),
        ("2>&- < <(echo good)", 0, ""),
        (">/dev/full < <(echo good)", 1, "error: "),
        ("< <(yes good | head -n 3000) | head -c 1; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_streams_that_are_closed_broken_or_endless(dact_bundle: Path, redirected: str, code: int, message: str) -> None:
    result = _edgebert("run", str(dact_bundle), "-i", "-", "--format", "jsonl", after=redirected)

    assert result.returncode == code, result.stderr
    assert _line_of(result).startswith(message)


LOCALES: dict[str, tuple[dict[str, str], str]] = {
    "C": ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "utf-8"),  # click writes UTF-8 in this case
    "ASCII": ({"PYTHONIOENCODING": "ascii"}, "utf-8"),
    "cp1252": ({"PYTHONIOENCODING": "cp1252"}, "cp1252"),
}
"""Environments, and the encoding of what is printed in them."""


@pytest.mark.parametrize("locale", LOCALES)
def test_any_text_is_printed_whatever_the_locale(dact_bundle: Path, locale: str, rounds: Rounds) -> None:
    variables, encoding = LOCALES[locale]
    text = "café 日本 \U0001f600"
    for form in FORMS[: rounds(1, 4)] if locale != "C" else FORMS[-rounds(1, 4) :]:
        result = _edgebert("run", str(dact_bundle), text.encode(), "--format", form, environment=variables)

        assert (result.returncode, result.stderr) == (0, b"")
        out = result.stdout.decode(encoding)
        if form in ("json", "jsonl"):
            found = json.loads(out)
            assert (found["rows"][0] if form == "json" else found)["text"] == text
        else:
            assert (r"café \u65e5\u672c \U0001f600" if encoding == "cp1252" else text) in out


def test_a_passage_of_bad_bytes_is_refused(invoke: Invoke, reader_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "passage.txt"
    path.write_bytes(b"a caf\xe9")

    code, out, err = invoke("run", reader_bundle, "--question", "a ?", "--context", f"@{path}")

    _check("passage", code, out, err)
    assert (code, err.startswith(f"error: --context @{path}: expected UTF-8")) == (2, True)
