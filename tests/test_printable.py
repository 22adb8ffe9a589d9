import pytest

from edgebert.printable import message_line, printable, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good", "good"),
        ("naïve 日本 שלום 👩\u200d👧", "naïve 日本 שלום 👩\u200d👧"),
        ("\x1b[2J\x07\x00", r"\x1b[2J\x07\x00"),
        ("one\r\n  two\u2028three", "one two three"),
        ("\u202etxt.exe\udcff", r"\u202etxt.exe\udcff"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
    ],
)
def test_printable_escapes_what_steers_a_terminal(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_message_line_escapes_what_cannot_be_seen() -> None:
    assert message_line("got \ufefftext\u200b\n") == r"got \ufefftext\u200b "


def test_message_line_leaves_the_middle_of_a_long_message_out() -> None:
    line = message_line("start" + "x" * 10_000 + "end")

    assert len(line) == 1500
    assert line.startswith("startxxx")
    assert line.endswith("xxxend")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (3, "int 3"),
        pytest.param(10**5000, "int of 16610 bits", id="huge"),
        ("x" * 1000, "str 'xxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxx'"),
        pytest.param([1, [2, [10**5000]]], "list [1, [2, [of 16610 bits]]]", id="huge inside"),
        (object(), "object"),
    ],
)
def test_shown_is_short(value: object, expected: str) -> None:
    assert shown(value) == expected
