"""Texts nobody has in mind who writes a model: seeded, endless, each with a name."""

import random
from collections.abc import Iterator

import numpy as np

_WORDS = ["good", "film", "awful", "plot", "the", "a", "it", "that", "who", "wrote", "charming", "dull", "moving"]
_SCRIPTS = {
    "latin": "aàáâäåãæbcçdeéèêfgñoöøœßuüÿ",
    "greek and cyrillic": "αβγδώЖжщъыё",
    "arabic and hebrew": "العربيةשלוםﷺ\u0640",
    "indic": "नमस्तेक्षাংলাதமிழ்",
    "east asian": "日本語中文한국어ｶﾞ\u3000",
    "wide": "𝔉𝕒𝖒𝓂𐍈𠀀🏴",
    "digits": "0123456789\u0663\u09ea\u2167½²",
    "punctuation": "!?.,;:'\"()[]{}<>|\\/@#$%^&*~`«»…—",
}
_ODD = {
    "control characters": "".join(map(chr, [*range(32), *range(127, 160)])),
    "spaces of all kinds": " \t\u00a0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
    "combining marks": "e\u0301\u0308\u0323\u20dd\u034f\u0489",
    "directions": "\u200e\u200f\u202a\u202b\u202d\u202e\u2066\u2067\u2069abcشع",
    "joiners": "👩\u200d👧❤\ufe0f🏳\U0001f3fb\u20e3\u200c\u200b\ufeff",
    "lone surrogates": "\ud800\udbff\udc00\udfff\udcffa ",
    "noncharacters": "\ufffe\uffff\U0001fffe\U0010ffff\ufffd\ufdd0\ue000",
    "terminal": "\x1b[31mred\x1b]0;title\x07\x9b2J\r\b",
    "NUL": "\0a\0",
}
_WHOLE = (
    "",
    " ",
    "\n",
    "\t\r\n",
    "\0",
    "[CLS]",
    "[PAD][MASK][SEP][UNK]",
    "##a",
    "<s></s><pad>",
    "👩\u200d👩\u200d👧\u200d👦",
    "\ufeff",
    "\ud83d\ude00",
    "\udcff",
    "nan",
    "None",
    "-1",
    "=1+1",
    "'; DROP TABLE texts; --",
    "../../etc/passwd",
    "%s%n{0}{}",
    "\x1b[2J",
    "<script>alert(1)</script>",
)


def texts(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yields names and texts without end: first those known to be nasty, then drawn ones."""
    yield from ((f"known text {text[:12]!a}", text) for text in _WHOLE)
    kinds = (_of_one_alphabet, _of_mixed_alphabets, _of_words, _of_one_character, _of_any_code_points)
    while True:
        yield rng.choice(kinds)(rng)


def _of_one_alphabet(rng: random.Random) -> tuple[str, str]:
    name, letters = rng.choice([*_SCRIPTS.items(), *_ODD.items()])
    return name, _draw(rng, letters, rng.randint(1, 80))


def _of_mixed_alphabets(rng: random.Random) -> tuple[str, str]:
    letters = "".join([*_SCRIPTS.values(), *_ODD.values()])
    return "mixed scripts", _draw(rng, letters, rng.randint(1, 120))


def _of_words(rng: random.Random) -> tuple[str, str]:
    words = rng.choices(_WORDS, k=rng.randint(1, 40))
    words[rng.randrange(len(words))] = _of_one_alphabet(rng)[1]
    return "words with one odd", rng.choice([" ", "  ", "\n", "\t", "\u00a0", "-", ""]).join(words)


def _of_one_character(rng: random.Random) -> tuple[str, str]:
    character = rng.choice("".join([*_SCRIPTS.values(), *_ODD.values()]))
    return "one character again and again", character * rng.choice([1, 2, 99, 100, 101, 500])


def _of_any_code_points(rng: random.Random) -> tuple[str, str]:
    return "any code points", "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 30)))


def _draw(rng: random.Random, letters: str, count: int) -> str:
    return "".join(rng.choices(letters, k=count))


class _Column:
    """As a data frame's column: iterable and of a length, and no list."""

    def __init__(self, values: list[object]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[object]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Raising:
    """Has no text form."""

    def __repr__(self) -> str:
        raise RuntimeError("no text form")


def _nested(depth: int) -> list[object]:
    nested: list[object] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def not_texts() -> dict[str, object]:
    """Returns what is given in place of one text and is none, by name."""
    return {
        "None": None,
        "True": True,
        "int": 3,
        "float": float("nan"),
        "huge int": 10**5000,
        "bytes": b"good film",
        "bytearray": bytearray(b"good"),
        "pair with a number": ("good", 3),
        "pair with None": (None, "good"),
        "dict": {"text": "good"},
        "set": {"good", "film"},
        "array of numbers": np.arange(3),
        "array of no dimension": np.array("good"),
        "numpy bytes": np.bytes_(b"good"),
        "deep list": _nested(50_000),
        "deep pair": (_nested(50_000), "good"),
        "object": object(),
        "type": str,
        "function": len,
        "no text form": _Raising(),
    }


def no_members() -> dict[str, object]:
    """Returns what is a list of texts, and so none that stands in one, by name."""
    return {
        "list of one": ["good"],
        "triple": ("good", "film", "plot"),
        "pair of pairs": (("good", "film"), ("bad", "plot")),
        "empty list": [],
        "array of three": np.array(["good", "bad", "film"]),
    }


def unusual_texts() -> dict[str, tuple[object, object]]:
    """Returns what is a text, a pair or a list though it is not of the plain types, and the same in plain ones."""
    return {
        "numpy text": (np.str_("good film"), "good film"),
        "list of numpy texts": ([np.str_("good"), np.str_("déjà vu")], ["good", "déjà vu"]),
        "array of texts": (np.array(["good", "bad film"]), ["good", "bad film"]),
        "array of objects": (np.array(["good", "bad film"], object), ["good", "bad film"]),
        "array of pairs": (np.array([["good", "bad"], ["a", "b"]]), [("good", "bad"), ("a", "b")]),
        "column": (_Column(["good", "bad"]), ["good", "bad"]),
        "generator": ((text for text in ["good", "bad"]), ["good", "bad"]),
        "keys": ({"good": 1, "bad": 2}.keys(), ["good", "bad"]),
        "tuple of three": (("good", "bad", "film"), ["good", "bad", "film"]),
        "pair as a list in a list": ([["good", "bad"]], [("good", "bad")]),
    }


def no_counts() -> dict[str, object]:
    """Returns what is given in place of a number of 1 or more and is none, by name."""
    return {
        "zero": 0,
        "negative": -1,
        "bool": True,
        "float": 2.0,
        "nan": float("nan"),
        "text": "3",
        "list": [3],
        "bytes": b"3",
        "array": np.array([1, 2]),
        "float array": np.float32(2),
        "object": object(),
        "complex": 1j,
    }
