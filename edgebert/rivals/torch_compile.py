"""torch_compile: the static model of `torch`, compiled for any batch size and length by `torch.compile`."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import numpy as np

from edgebert.errors import ConfigError, MissingExtraError
from edgebert.rivals import torch
from edgebert.rivals._protocol import Spec

TAKES_REFERENCE = True
_TRIAL_SHAPES = ((1, 7), (1, 9), (2, 9), (3, 8))


class Side(torch.Side):
    """A compiled model of `transformers`; what has to be compiled is, before anything is timed.

    Raises:
        ConfigError: It cannot be compiled.
        MissingExtraError: There is no C++ compiler.
    """

    form = "compiled"

    def __init__(self, spec: Spec) -> None:
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise MissingExtraError(
                f"bench --against torch_compile needs the C++ compiler {compiler}, which is not installed; install it "
                "with the system's packages, or name another one in the variable CXX."
            )
        super().__init__(spec)
        for shape in _TRIAL_SHAPES:
            ids = np.ones(shape, np.int64)
            try:
                self.answer({"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids})
            except self._torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0]
                raise ConfigError(f"--against torch_compile: cannot compile this model here: {reason}") from error

    def finish(self, model: Any) -> Any:
        """Returns the compiled model."""
        # No pool of compiling processes, which would outlive this one when it is ended.
        self._torch._inductor.config.compile_threads = 1
        return self._torch.compile(model, dynamic=True)
