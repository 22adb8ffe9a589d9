"""fastbert: checkpoints of FastBERT's research script and of its package.

Liu et al., 2020 (https://arxiv.org/abs/2004.02178). An encoder under UER's names, and a classifier after every layer,
`classifiers.{layer}`, that of the last layer being the teacher. Which of the two codes wrote it shows in its names: the
package keeps the encoder under `kernel.`. Their BERT is not that of `transformers` in these points, which are
converted:
- Settings have names of their own (`heads_num`, `layers_num`, ...); the activation is the exact gelu.
- A norm divides by the standard deviation of n - 1, plus 1e-6. Its scale times sqrt((n - 1) / n) does the same with
  ours; the 1e-6 is left out, a relative difference of 1e-6 over the standard deviation.
- Segments count from 1, and 0 is padding, so that the table has 3 rows. Ours takes rows 1 and 2; for the package, which
  puts a whole pair into segment 1, row 1 twice.
- A single text is `[CLS] text`, without `[SEP]`; a pair is `[CLS] first [SEP] second [SEP]`, in the package without the
  last `[SEP]`. The tokenizer is changed to that. The package glues both texts around the letters `[SEP]`, which only
  next to Chinese characters become the token; between letters it has trained on `[`, `sep`, `]`, and has cut each text
  to half the length in characters. Neither is done here, and a note says so.
- The published `--pooling first` is assumed where the settings do not say it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from edgebert.convert._translation import Renames, Translation
from edgebert.errors import ConfigError

_ENCODER: Renames = (
    ("embedding.word_embedding.", "encoder.embeddings.word."),
    ("embedding.position_embedding.", "encoder.embeddings.position."),
    ("embedding.segment_embedding.", "encoder.embeddings.token_type."),
    ("embedding.layer_norm.gamma", "encoder.embeddings.norm.weight"),
    ("embedding.layer_norm.beta", "encoder.embeddings.norm.bias"),
    ("encoder.transformer.{layer}.self_attn.linear_layers.0.", "encoder.layers.{layer}.attention.query."),
    ("encoder.transformer.{layer}.self_attn.linear_layers.1.", "encoder.layers.{layer}.attention.key."),
    ("encoder.transformer.{layer}.self_attn.linear_layers.2.", "encoder.layers.{layer}.attention.value."),
    ("encoder.transformer.{layer}.self_attn.final_linear.", "encoder.layers.{layer}.attention.output."),
    ("encoder.transformer.{layer}.layer_norm_1.gamma", "encoder.layers.{layer}.attention.norm.weight"),
    ("encoder.transformer.{layer}.layer_norm_1.beta", "encoder.layers.{layer}.attention.norm.bias"),
    ("encoder.transformer.{layer}.feed_forward.linear_1.", "encoder.layers.{layer}.feed_forward.expand."),
    ("encoder.transformer.{layer}.feed_forward.linear_2.", "encoder.layers.{layer}.feed_forward.contract."),
    ("encoder.transformer.{layer}.layer_norm_2.gamma", "encoder.layers.{layer}.feed_forward.norm.weight"),
    ("encoder.transformer.{layer}.layer_norm_2.beta", "encoder.layers.{layer}.feed_forward.norm.bias"),
)
_CLASSIFIER: Renames = (
    ("output_layer_0.", "narrow."),
    ("self_atten.linear_layers.0.", "query."),
    ("self_atten.linear_layers.1.", "key."),
    ("self_atten.linear_layers.2.", "value."),
    ("self_atten.final_linear.", "output."),
    ("output_layer_1.", "dense."),
    ("output_layer_2.", "label."),
)
_NEEDED = ("layers_num", "hidden_size", "heads_num", "feedforward_size")
_ONLY = {"embedding": "bert", "encoder": "bert", "pooling": "first"}


def recognises(names: Collection[str]) -> bool:
    """Says whether tensor names are of this kind."""
    return any(re.match(r"classifiers\.\d+\.output_layer_0\.", name) for name in names)


def translate(settings: dict[str, Any], weights: dict[str, Tensor], *, where: str) -> Translation:
    """Returns how a checkpoint becomes ours.

    Args:
        settings: Its configuration, under UER's names.
        weights: Its tensors by name.
        where: What messages call the settings.

    Raises:
        ConfigError: A setting is missing, or one that has no counterpart here.
    """
    is_package = any(name.startswith("kernel.") for name in weights)
    prefix = "kernel." if is_package else ""
    encoder = _encoder_settings(settings, weights, prefix, where)
    last = encoder["num_hidden_layers"] - 1
    exits = ((f"classifiers.{last}.", "teacher."), ("classifiers.{layer}.", "students.{layer}."))
    pair = "[CLS] $A [SEP] $B" if is_package else "[CLS] $A [SEP] $B:1 [SEP]:1"
    return Translation(
        encoder=encoder,
        method={"name": "fastbert", "pool": "cls"},
        reason="the same method",
        renames=(
            *((prefix + theirs, ours) for theirs, ours in _ENCODER),
            *((start + theirs, target + ours) for start, target in exits for theirs, ours in _CLASSIFIER),
        ),
        ignored=(
            (r"kernel\.target\..+", "a head of the pre-training"),
            (r"target\..+", "a head of the pre-training"),
        ),
        label_tensor="classifiers.0.output_layer_2.weight",
        adapt_tensor=functools.partial(_adapt_tensor, is_package=is_package),
        adapt_tokenizer=functools.partial(_adapt_tokenizer, pair=pair),
        notes=(
            *(_GLUED if is_package else ()),
            f"the tokenizer now writes a text as [CLS] text and a pair as {_in_words(pair)}, as the model was trained",
        ),
    )


_GLUED = (
    "pairs of texts with spaces: FastBERT's package wrote the letters [SEP] between them in training, here it is the "
    "token; measure before you rely on it",
)


def _encoder_settings(settings: dict[str, Any], weights: dict[str, Tensor], prefix: str, where: str) -> dict[str, Any]:
    for name in _NEEDED:
        if not isinstance(settings.get(name), int):
            raise ConfigError(
                f"{where}: {name}: expected a number, got {settings.get(name)!r}; FastBERT's own settings are needed, "
                "such as its models/bert_base_config.json."
            )
    for name, only in _ONLY.items():
        if settings.get(name, only) != only:
            raise ConfigError(f"{where}: {name}: expected {only}, got {settings[name]!r}, which is not supported.")
    if settings.get("emb_size", settings["hidden_size"]) != settings["hidden_size"]:
        expected, got = settings["hidden_size"], settings["emb_size"]
        raise ConfigError(f"{where}: emb_size: expected hidden_size={expected}, got {got}, which is not supported.")
    return {
        "model_type": "bert",
        "num_hidden_layers": settings["layers_num"],
        "hidden_size": settings["hidden_size"],
        "num_attention_heads": settings["heads_num"],
        "intermediate_size": settings["feedforward_size"],
        "vocab_size": _rows(weights, f"{prefix}embedding.word_embedding.weight"),
        "max_position_embeddings": _rows(weights, f"{prefix}embedding.position_embedding.weight"),
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": settings.get("dropout", 0.1),
        "attention_probs_dropout_prob": settings.get("dropout", 0.1),
        "pad_token_id": 0,
    }


def _rows(weights: dict[str, Tensor], name: str) -> int:
    """Returns the rows of a table; some that make a model when it is missing, which is then named with all else."""
    return len(weights[name]) if name in weights else 4


def _adapt_tensor(name: str, tensor: Tensor, *, is_package: bool) -> Tensor:
    if re.search(r"layer_norm(_\d)?\.gamma$", name):
        return tensor * math.sqrt((len(tensor) - 1) / len(tensor))
    if name.endswith("segment_embedding.weight"):
        return torch.cat([tensor[1:2], tensor[1:2]]) if is_package else tensor[1:]
    return tensor


def _adapt_tokenizer(data: bytes, *, pair: str) -> bytes:
    tokenizer = Tokenizer.from_buffer(data)
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    for token, number in special:
        if number is None:
            raise ConfigError(f"the tokenizer has no {token}; is it the one FastBERT was trained with?")
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", pair=pair, special_tokens=special)
    return tokenizer.to_str().encode()


def _in_words(template: str) -> str:
    return template.replace(":1", "").replace("$A", "first").replace("$B", "second")
