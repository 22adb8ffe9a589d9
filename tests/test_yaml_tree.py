import pytest

from edgebert.errors import ConfigError
from edgebert.yaml_tree import read_yaml, write_yaml


def test_read_yaml_with_the_line_of_each_value() -> None:
    tree = read_yaml(b"a: 1\nb:\n  c: [x,\n    2.5]\n", where="f")

    assert tree.value == {"a": 1, "b": {"c": ["x", 2.5]}}
    assert tree.lines == {"": 1, "a": 1, "b": 2, "b.c": 3, "b.c[0]": 3, "b.c[1]": 4}


def test_read_yaml_of_nothing() -> None:
    assert read_yaml(b"# nothing\n", where="f") == (None, {})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"a: 1\na: 2\n", "f:2: the key 'a' stands there twice."),
        (b"a: &x 1\nb: *x\n", "f:2: an alias (*) is not taken, write the value out."),
        (b"a:\n  " + b"[" * 60, "f:2: nested more than 50 deep."),
        (b"a: 2001-02-03\n", "f:1: '2001-02-03' is of the kind 'timestamp'; if it is text, put it in quotes."),
        (b"\na: !!set {b}\n", "f:2: this is of the kind 'set'; if it is text, put it in quotes."),
        (b"a: .nan\n", "f:1: expected a finite number, got nan."),
        (b"a: 99999999999999999999\n", "f:1: expected a number of less than 64 bits."),
        (b'a: "\\udcff"\n', r"f:1: expected text, got the lone surrogate in '\udcff'."),
        (b"a: !!int x\n", "f:1: cannot be read as int: invalid literal for int() with base 10: 'x'."),
        (b"a: b: c\n", "f:1: not YAML: mapping values are not allowed here."),
        (b"a: 1\nb: \xe9\n", "f:2: expected UTF-8, got the byte 0xe9; save the file as UTF-8."),
        (b"a: 1\n---\nb: 2\n", "f:2: not YAML: but found another document."),
        ("[", "f: not YAML: expected the node content, but found '<stream end>'."),
    ],
)
def test_read_yaml_refuses(source: bytes | str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_yaml(source, where="f")

    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("text", "number"), [("1e-5", 1e-5), ("-2E3", -2e3), (".5e1", 5.0), ("1.5e+2", 150.0), ("1.5e2", 150.0)]
)
def test_read_yaml_number_with_an_exponent(text: str, number: float) -> None:
    assert read_yaml(text, where="f").value == number


@pytest.mark.parametrize("text", ["1e", "e5", "1e-5x", "1-e5", "v1e5"])
def test_read_yaml_text_like_a_number(text: str) -> None:
    assert read_yaml(text, where="f").value == text


def test_write_yaml_is_read_as_it_was() -> None:
    value = {"rate": 1e-5, "labels": ["1e5", "é", "1.0"], "data": None}

    assert read_yaml(write_yaml(value), where="f").value == value
