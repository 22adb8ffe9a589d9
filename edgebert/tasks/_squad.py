"""How good an answer is, as the evaluation script of SQuAD v1.1 counts it.

Rajpurkar et al., 2016 (https://arxiv.org/abs/1606.05250): lower case, without punctuation, articles and surplus white
space; the best of all answers that count as right.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Returns what is compared of an answer.

    >>> normalise("The  Tower, of a London!")
    'tower of london'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """Returns 1 where both are the same once normalised, else 0."""
    return float(normalise(answer) == normalise(gold))


def f1(answer: str, gold: str) -> float:
    """Returns the F1 of the words both share, 0 to 1; two that are empty once normalised share none."""
    words, gold_words = normalise(answer).split(), normalise(gold).split()
    shared = sum((Counter(words) & Counter(gold_words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def best(score: Callable[[str, str], float], answer: str, golds: Sequence[str]) -> float:
    """Returns the score with the answer that is best for it."""
    return max(score(answer, gold) for gold in golds)
