"""The static model that most rivals time: that of a checkpoint, or the bundle's shape with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Manifest
from edgebert.errors import ConfigError, require
from edgebert.hub import model_options, similar
from edgebert.rivals._protocol import Spec
from edgebert.rivals._static import StaticSide
from edgebert.tasks import load_task

T = TypeVar("T")


class HuggingFaceSide(StaticSide):
    """A static side made of a model of `transformers`.

    Attributes:
        model: That model.

    Raises:
        ConfigError: See `open_model`.
        MissingExtraError: torch or transformers is not installed.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.model = open_model(spec, self.bundle.manifest)
        self.layers = self.model.config.num_hidden_layers
        if spec.reference is not None:
            self.label_places = _label_places(self.model.config, self.bundle.manifest.labels, spec.reference)

    def write_tokenizer(self, folder: Path) -> None:
        """Writes what `AutoTokenizer` opens, of the bundle's `tokenizer.json` that is there."""
        import transformers

        names = ["input_ids", "attention_mask", "token_type_ids"]
        transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"),
            model_max_length=self.facts.max_length,
            model_input_names=list(inputs_of(self.model, dict.fromkeys(names))),
        ).save_pretrained(folder)


def open_model(spec: Spec, manifest: Manifest) -> Any:
    """Returns a model of `transformers` with the head of the bundle's task, ready for inference.

    Args:
        spec: `reference` is its checkpoint; None gives it random weights, since timing does not depend on them.
        manifest: The bundle's, whose encoder shape a random model gets.

    Raises:
        ConfigError: The checkpoint cannot be opened, lacks weights, has fewer token ids or positions than the bundle,
            or the provider is not the processor.
        MissingExtraError: torch or transformers is not installed.
    """
    purpose = f"bench --against {spec.side}"
    require("torch", extra="train", purpose=purpose)
    transformers = require("transformers", extra="train", purpose=purpose)
    if spec.provider.lower() not in ("cpu", "cpuexecutionprovider"):
        raise ConfigError(f"--against {spec.side}: runs on the provider cpu only, got {spec.provider}.")
    auto_model = getattr(transformers, load_task(manifest.task).AUTO_MODEL)
    if spec.reference is None:
        return _random_model(transformers, auto_model, manifest)
    options = model_options(spec.reference)
    try:
        model, loading = auto_model.from_pretrained(spec.reference, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "" if Path(spec.reference).is_dir() else similar(spec.reference)
        raise ConfigError(f"--reference {spec.reference}: cannot be opened as a checkpoint: {reason}{hint}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ConfigError(
            f"--reference {spec.reference}: has no {', '.join(missing[:2])}, so what it answers would be random; name "
            "a checkpoint with the head of transformers (plain has it with pool: cls), or leave --reference out."
        )
    if model.config.vocab_size < manifest.encoder.vocabulary_size:
        raise ConfigError(
            f"--reference {spec.reference}: expected at least the bundle's {manifest.encoder.vocabulary_size} token "
            f"ids, got {model.config.vocab_size}; name the checkpoint the bundle was made from."
        )
    positions = getattr(model.config, "max_position_embeddings", manifest.encoder.max_length)
    if positions < manifest.encoder.max_length:
        raise ConfigError(
            f"--reference {spec.reference}: expected at least the bundle's {manifest.encoder.max_length} positions, "
            f"got {positions}; name the checkpoint the bundle was made from."
        )
    return model.eval()


def inputs_of(model: Any, values: Mapping[str, T]) -> dict[str, T]:
    """Returns what a model of `transformers` reads of a batch: segment ids only when it has two segments or more."""
    has_segments = getattr(model.config, "type_vocab_size", 0) > 1
    return {name: value for name, value in values.items() if has_segments or name != "token_type_ids"}


def _label_places(config: Any, labels: Sequence[str], reference: str) -> NDArray[np.int64] | None:
    """Returns where a checkpoint has each of the labels; None where its own names say nothing, so the order is ours.

    Raises:
        ConfigError: It has another number of labels.
    """
    names = [config.id2label[number] for number in range(config.num_labels)]
    if len(names) != len(labels):
        raise ConfigError(f"--reference {reference}: expected the bundle's {len(labels)} labels, got {len(names)}.")
    if sorted(names) != sorted(labels):
        return None
    return np.array([names.index(label) for label in labels], np.int64)


def _random_model(transformers: Any, auto_model: Any, manifest: Manifest) -> Any:
    from edgebert.encoders._blocks import EncoderConfig
    from edgebert.encoders._checkpoint import settings_of

    facts = manifest.encoder
    shape = EncoderConfig(
        family=facts.family,
        layers=facts.layers,
        hidden_size=facts.hidden_size,
        heads=facts.heads,
        feed_forward_size=facts.feed_forward_size,
        vocabulary_size=facts.vocabulary_size,
        max_positions=facts.max_length,
        token_types=facts.token_types,
        activation=facts.activation,
        pad_token_id=facts.pad_token_id,
        embedding_size=facts.embedding_size,
        shared_layers=facts.shared_layers,
    )
    config = transformers.AutoConfig.for_model(**settings_of(shape), num_labels=len(manifest.labels))
    return auto_model.from_config(config).eval()
