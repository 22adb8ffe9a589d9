"""What `edgebert.bench` and a side's child process say to each other: one JSON object a line, over stdin and stdout.

The parent first sends a `Spec`; the child loads that side and answers `Ready`. Then the child answers every `Prepare`
with `Prepared`, every `Time` with `Timed`, every `TimeSteps` with `Steps`, every `Predict` with `Predicted` and every
`Save` with `Saved`, and ends when its stdin does. Instead of any answer it may send `Failed`, and end.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgebert.bundle.manifest import Knobs
from edgebert.energy import Energy
from edgebert.text import Text

Scenario = Literal["single-stream", "offline"]


class Spec(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Which side to load.

    Attributes:
        side: A file in `edgebert/rivals`.
        bundle: The bundle folder to run, or whose encoder shape and tokenizer the rival has.
        threads: Threads inside an operator.
        provider: A file in `edgebert/runtime/providers`.
        policy: Operating point or policy of a bundle.
        knobs: Knobs on top of it.
        compact: Whether finished rows leave their batch at once.
        reference: Checkpoint folder or hub id of a static rival. None: random weights.
        calibration: Texts that a rival which is quantized may calibrate on; none: random token ids.
        max_length: Those texts are cut to this many tokens; None is the model's own limit.
    """

    side: str
    bundle: str
    threads: int = 1
    provider: str = "cpu"
    policy: str = "default"
    knobs: Knobs = {}
    compact: bool = True
    reference: str | None = None
    calibration: tuple[Text, ...] = ()
    max_length: int | None = None


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What to time: random token ids of one length, or given texts.

    Attributes:
        batch: Rows in a call; for `offline`, most rows in a batch.
        length: Tokens of each row, for random token ids.
        vocabulary_size: Random token ids stay below it.
        texts: The texts; none for random token ids.
        max_length: Texts are cut to this many tokens; None is the model's own limit.
        scenario: For texts: one text a call, or the whole list in one call.
        policy: Policy of a bundle for this case only. None: the one it was loaded with.
        knobs: The knobs of that policy.
    """

    batch: int
    length: int = 0
    vocabulary_size: int = 0
    texts: tuple[Text, ...] = ()
    max_length: int | None = None
    scenario: Scenario = "single-stream"
    policy: str | None = None
    knobs: Knobs = {}


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Make a case's inputs and warm up on them."""

    case: Case


class Time(msgspec.Struct, frozen=True, tag=True):
    """Time one turn of a prepared case, named by its number."""

    case: int


class TimeSteps(msgspec.Struct, frozen=True, tag=True):
    """Time the steps inside one turn of a prepared case, named by its number."""

    case: int


class Predict(msgspec.Struct, frozen=True, tag=True):
    """Answer the texts of a prepared case, named by its number, untimed."""

    case: int


class Save(msgspec.Struct, frozen=True, tag=True):
    """Write a static model into an empty folder as a user would have it."""

    folder: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The side is loaded.

    Attributes:
        pid: The child's process number.
        load_ms: What loading took, imports included.
        method: The model's method.
        policy: The policy in use.
        knobs: Its knobs.
        precision: Of the weights.
    """

    pid: int
    load_ms: float
    method: str
    policy: str
    knobs: Knobs
    precision: str


class Prepared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A case is ready to be timed.

    Attributes:
        case: Its number, from 0.
        texts_per_call: Texts in one timed call.
        first_ms: What the first call took, before any warm-up; for `offline` the first `batch` texts.
        tokenize_ms: Tokenizing one text, one at a time, mean; None for random token ids.
        mean_tokens: Mean length of the rows in tokens, after truncation.
    """

    case: int
    texts_per_call: int
    first_ms: float
    tokenize_ms: float | None
    mean_tokens: float


class Timed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One turn.

    Attributes:
        call_ms: The wall time of each call, from token ids to result.
        mean_layers: The mean number of layers a row ran.
        energy: What the calls took together.
        private_mb: The process's private memory after them, less what it had before the side was loaded; None where
            psutil is not installed.
    """

    call_ms: list[float]
    mean_layers: float
    energy: Energy
    private_mb: float | None


class Steps(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What one turn spent where, summed over its calls.

    Attributes:
        calls: How many calls the turn had.
        total_ms: What they took together.
        graph_ms: What sessions took of it, by the kind of their step; nothing for a side without a program.
        graph_calls: How often sessions were called.
    """

    calls: int
    total_ms: float
    graph_ms: dict[str, float]
    graph_calls: dict[str, int]


class Predicted(msgspec.Struct, frozen=True, tag=True):
    """What the side answers to each text, as the task counts it, such as a label's number."""

    predictions: list[int | float | str]


class Saved(msgspec.Struct, frozen=True, tag=True):
    """It is there; `arguments` are what `python -m edgebert.rivals._cold` opens it with."""

    arguments: list[str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The side cannot go on: name of a class in `edgebert/errors.py`, and its message."""

    error: str
    message: str


Request = Prepare | Time | TimeSteps | Predict | Save
Reply = Ready | Prepared | Timed | Steps | Predicted | Saved | Failed
