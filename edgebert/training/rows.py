"""Examples as training rows: token ids, grouped by length, padded to a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from edgebert.methods._program import Batch
from edgebert.text import Encoded, TextEncoder


class Rows(Dataset[int]):
    """The rows of some examples. An item is its own place among them.

    Attributes:
        encoded: Their token ids.
        labels: What a loss wants of each row, as the task has it, [rows, ...].
        text: The tokenizer.
        targets: What the task's metric wants of each example, [examples]; the labels where none are given.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        labels: NDArray[Any],
        text: TextEncoder,
        targets: NDArray[Any] | None = None,
    ) -> None:
        self.encoded = encoded
        self.labels = labels
        self.text = text
        self.targets = labels if targets is None else targets

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, place: int) -> int:
        return place

    def collate(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Returns the padded batch of some rows, int64 [batch, tokens], and their labels, [batch, ...]."""
        values: dict[str, Any] = dict(self.text.pad([self.encoded[place] for place in places]))
        batch = {name: torch.from_numpy(value) for name, value in values.items()}
        batch["labels"] = torch.from_numpy(self.labels[list(places)])
        return batch

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yields every row once, like lengths together, with its places."""
        order = np.argsort([len(row.ids) for row in self.encoded], kind="stable")
        for start in range(0, len(order), size):
            places = order[start : start + size]
            yield places, Batch(**self.collate(places.tolist()))


class LengthGroupedSampler(Sampler[int]):
    """Draws rows at random but like lengths together; the same seed and epoch give the same order."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        full = len(indices) // self.batch_size
        # A smaller rest comes last: in the middle it would shift every batch after it over two groups of lengths.
        for batch in [*torch.randperm(full, generator=generator).tolist(), *range(full, len(batches))]:
            yield from batches[batch]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch, counted from 0; the trainer calls it."""
        self.epoch = epoch
