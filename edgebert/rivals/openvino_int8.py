"""openvino_int8: the rival `openvino` in int8, by the post-training quantization of `nncf`.

It calibrates on the texts that are timed, or on random token ids where there are none: more than a user can, since
these are the very texts it then answers.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgebert.errors import require
from edgebert.rivals import openvino
from edgebert.rivals._hugging_face import inputs_of
from edgebert.rivals._protocol import Spec
from edgebert.text import Values

TAKES_REFERENCE = True
_MOST_ROWS = 300  # what nncf takes by itself
_LONGEST_RANDOM = 128


class Side(openvino.Side):
    """Weights and activations in int8, with nncf's settings for transformers.

    Raises:
        MissingExtraError: openvino or nncf is not installed.
    """

    wanted = "int8"

    def finish(self, converted: Any, spec: Spec) -> Any:
        """Returns the quantized model."""
        nncf = require("nncf", extra="bench-openvino", purpose=self.purpose)
        logging.getLogger("nncf").setLevel(logging.ERROR)
        rows = [inputs_of(self.model, row) for row in self._calibration(spec)]
        with contextlib.redirect_stdout(sys.stderr):
            return nncf.quantize(
                converted, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows)
            )

    def _calibration(self, spec: Spec) -> Iterator[Values]:
        """Yields batches of one row."""
        if spec.calibration:
            for row in self.encode(spec.calibration, spec.max_length)[:_MOST_ROWS]:
                yield self.pad([row])
            return
        generator = np.random.default_rng(0)
        longest = min(_LONGEST_RANDOM, self.facts.max_length)
        for _ in range(_MOST_ROWS):
            shape = (1, int(generator.integers(min(8, longest), longest + 1)))
            ids = generator.integers(0, self.facts.vocabulary_size, shape, np.int64)
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
