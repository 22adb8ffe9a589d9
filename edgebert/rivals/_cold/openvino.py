"""A model in OpenVINO's own format: openvino and tokenizers, without a cache of compiled models."""

from __future__ import annotations

from collections.abc import Callable

from edgebert.telemetry import silence_openvino


def start(folder: str, threads: str, max_length: str, precision: str) -> Callable[[str], int]:
    """Opens `model.xml` and `tokenizer.json`; returns what gives a text's label number."""
    import numpy as np

    silence_openvino()
    import openvino
    from tokenizers import Tokenizer

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": int(threads),
        "INFERENCE_PRECISION_HINT": precision,
    }
    model = openvino.Core().compile_model(f"{folder}/model.xml", "CPU", settings)
    known = {"input_ids", "attention_mask", "token_type_ids"}
    names = [name for value in model.inputs for name in value.names & known]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(int(max_length))
    tokenizer.no_padding()  # some files fill every text up to a fixed length, which transformers does not do either

    def answer(text: str) -> int:
        row = tokenizer.encode(text)
        values = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        return int(model({name: np.array([values[name]], np.int64) for name in names})[0].argmax())

    return answer
