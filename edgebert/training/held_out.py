"""Which training examples are held out, to choose operating points on and to count on.

A data set may hold the parts of its texts as examples of their own: SST-2 trains on every phrase of its sentences, and
is asked about sentences. Held out at random, most rows would be phrases, and those of sentences that training sees:
easier than what the model will meet, so that points chosen there are too bold. `whole_texts` holds out only texts that
are no part of another, and keeps from training what is part of one of them alone; a phrase that several texts have
stays. At random, equal texts may come apart: 1 % of SST-2's held-out rows have a copy in train. `distinct_texts` keeps
them together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import DataError

_FIRST_CHARACTER = 0x10000
"""Token ids as characters beyond the surrogates, so that Python's own search finds one row in another."""


def hold_out(
    groups: NDArray[np.int64], counts: Sequence[int], *, may_be_held_out: NDArray[np.bool_] | None = None
) -> list[NDArray[np.int64]]:
    """Splits off parts at random and returns the places of their examples, and those of the rest, in random order too.

    A part is of whole groups, and has as many examples as asked or the fewest above. Parts are the same whatever the
    training's seed, so that seeds are comparable.

    Args:
        groups: A number for each example, int64 [examples]: the same where examples must not be held out apart.
        counts: How many examples each part wants.
        may_be_held_out: Which examples a part may have, bool [examples]; the others of its groups are in no part and
            not in the rest. None: all.

    Raises:
        DataError: There are not as many that may be held out, or whole groups leave nothing to train on.
    """
    eligible = np.ones(len(groups), np.bool_) if may_be_held_out is None else may_be_held_out
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of[eligible], minlength=int(group_of.max()) + 1)
    filled = np.flatnonzero(sizes)
    order = filled[np.random.default_rng(0).permutation(len(filled))]
    held_out = np.cumsum(sizes[order])
    if held_out[-1] < sum(counts):
        raise DataError(
            f"train: {held_out[-1]} examples may be held out, of which {' and '.join(map(str, counts))} are asked for; "
            "lower train.tuning_rows or train.calibration_rows."
        )
    cuts: list[int] = []
    taken = 0
    for count in counts:
        # As many groups as it takes to reach what the parts before have, and the count on top.
        cut = int(np.searchsorted(held_out, taken + count)) + 1 if count else (cuts or [0])[-1]
        cuts.append(min(cut, len(order)))
        taken = int(held_out[cuts[-1] - 1]) if cuts[-1] else 0
    parts = np.split(order, cuts)[:-1]
    rest = np.flatnonzero(~np.isin(group_of, np.concatenate(parts)))
    if not len(rest):
        raise DataError(f"train: {len(groups)} examples in {len(order)} groups, all of which would be held out.")
    turn = np.full(len(sizes), len(sizes))
    turn[order] = np.arange(len(order))
    chosen = [*(np.flatnonzero(np.isin(group_of, part) & eligible) for part in parts), rest]
    return [places[np.argsort(turn[group_of[places]], kind="stable")] for places in chosen]


def distinct_texts(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Returns a number for each text, int64 [texts], the same for those of equal token ids."""
    first: dict[tuple[int, ...], int] = {}
    return np.array([first.setdefault(tuple(row), place) for place, row in enumerate(rows)], np.int64)


def whole_texts(
    rows: Sequence[Sequence[int]], special_ids: Collection[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Finds the texts that are no part of another.

    Args:
        rows: The token ids of each text.
        special_ids: The ids that stand for no part of a text.

    Returns:
        A number for each text, int64 [texts], the same for a whole text and all its parts that are part of no other
        whole text; and whether a text is whole, bool [texts]. Of equal texts the first is whole.
    """
    special = frozenset(special_ids)
    texts = ["".join(chr(_FIRST_CHARACTER + number) for number in row if number not in special) for row in rows]
    frequency = Counter(token for text in texts for token in set(text))
    groups = np.arange(len(texts))
    whole: list[int] = []
    whole_with: dict[str, list[int]] = defaultdict(list)
    for place in sorted(range(len(texts)), key=lambda place: -len(texts[place])):
        text = texts[place]
        candidates = whole_with[min(text, key=lambda token: frequency[token])] if text else whole
        owners = [owner for owner in candidates if text in texts[owner]]
        if not owners:
            whole.append(place)
            for token in set(text):
                whole_with[token].append(place)
        elif len(owners) == 1:
            groups[place] = owners[0]
    return groups, np.isin(np.arange(len(texts)), whole)
