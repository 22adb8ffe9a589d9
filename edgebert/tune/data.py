"""The texts a bundle is tuned on: read, with labels or without, and named so that others can tell them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgebert.bundle.manifest import Manifest
from edgebert.data import Example, name_of
from edgebert.errors import DataError
from edgebert.questions import Question
from edgebert.tasks import Task


@dataclass(frozen=True, eq=False)
class TuningTexts:
    """What a bundle is tuned on.

    Attributes:
        examples: The texts.
        targets: What the model should answer, [texts]; None where there are no labels.
        name: What the data is called, as `data.name_of` says.
    """

    examples: Sequence[Example]
    targets: NDArray[Any] | None
    name: str


def read_texts(
    task: Task,
    manifest: Manifest,
    source: str | Path,
    *,
    split: str | None,
    columns: Mapping[str, str] | None,
    require_labels: bool,
) -> TuningTexts:
    """Reads the texts.

    Args:
        task: The bundle's task.
        manifest: Says which labels there are.
        source: A file, folder or hub id.
        split: Which split of a folder or hub id.
        columns: Which column of the data is which field.
        require_labels: Whether texts without labels are an error; else either all have one or none has.

    Raises:
        DataError: The data cannot be used, or a label is not one that the model can answer.
    """
    examples = task.read(source, split=split, columns=columns, require_labels=require_labels)
    labelled = [_has_answer(example) for example in examples]
    if any(labelled) and not all(labelled):
        raise DataError(
            f"{source}: example {labelled.index(False) + 1}: expected a label, as others have one, got none; label all "
            "or none."
        )
    targets = task.encode_targets(examples, manifest.labels, where=str(source)) if all(labelled) else None
    return TuningTexts(examples, targets, name_of(source, examples, split=split))


def _has_answer(example: Example) -> bool:
    return bool(example.answers) if isinstance(example, Question) else example.label is not None
