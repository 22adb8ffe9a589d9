"""The only training loop: runs a method's stages, one after the other, on transformers.Trainer.

The Trainer brings mixed precision, clipping and resuming; this file tells it what a stage is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME

from edgebert.config import TrainConfig
from edgebert.errors import EdgeBertError
from edgebert.methods._program import Batch, Stage
from edgebert.output import Advance, Reporter
from edgebert.partial import check_room, remove, synchronise, synchronise_names
from edgebert.training.rows import LengthGroupedSampler, Rows


class _StageModule(nn.Module):
    """A stage as the Trainer wants it: a module whose forward gives the loss."""

    def __init__(self, model: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self._loss = stage.loss

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        batch = Batch(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, labels=labels)
        return {"loss": self._loss(batch)}


class _StageTrainer(transformers.Trainer):
    """The Trainer with our optimizer groups and length-grouped batches."""

    optimizer: torch.optim.Optimizer | None

    def __init__(self, *, rows: Rows, stage: Stage, config: TrainConfig, folder: Path, **options: Any) -> None:
        super().__init__(train_dataset=rows, data_collator=rows.collate, **options)
        self._stage = stage
        self._config = config
        self._folder = folder

    def _save_checkpoint(self, *arguments: Any) -> None:
        """Lets the Trainer save its state, and gives it its place once it is whole: it saves file by file."""
        unfinished = Path(self.args.output_dir)
        try:
            super()._save_checkpoint(*arguments)
            _keep(unfinished, self._folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            # Weights, two moments of each, and some more: what torch wrote does not say why it could not.
            check_room(self._folder, 4 * sum(p.nbytes for p in self.model.parameters()) + (1 << 20))
            raise EdgeBertError(f"{self._folder}: the state of the training cannot be saved: {error}") from error
        finally:
            remove(unfinished)

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """Makes AdamW with the stage's groups; biases and norms do not decay."""
        if self.optimizer is None:
            groups = [
                {
                    "params": [p for p in group.parameters if (p.ndim >= 2) == decays],
                    "lr": group.learning_rate,
                    "weight_decay": self._config.weight_decay if decays else 0.0,
                }
                for group in self._stage.groups
                for decays in (True, False)
            ]
            self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
        return self.optimizer

    def _get_train_sampler(self, *_: Any) -> LengthGroupedSampler:
        assert isinstance(self.train_dataset, Rows)
        lengths = [len(row.ids) for row in self.train_dataset.encoded]
        return LengthGroupedSampler(lengths, self._config.batch_size, self.args.seed)


def _keep(unfinished: Path, folder: Path) -> None:
    """Moves a saved state to its place, and removes the ones before it."""
    for saved in _saved_states(unfinished):
        synchronise(saved)
        if not (folder / saved.name).exists():
            saved.rename(folder / saved.name)
        synchronise_names(folder)
    for older in _saved_states(folder)[:-1]:
        remove(older)


def _saved_states(folder: Path) -> list[Path]:
    """Returns the states of the Trainer in a folder, the newest last."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


class _Progress(transformers.TrainerCallback):
    """Passes steps and losses on to our progress display."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:  # a resumed stage has these behind it
            self._advance(state.global_step, "resumed")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance(1, self._note)


def train_stage(
    model: nn.Module,
    stage: Stage,
    rows: Rows,
    *,
    config: TrainConfig,
    epochs: float,
    seed: int,
    folder: Path,
    max_steps: int | None,
    is_resumed: bool,
    reporter: Reporter,
) -> None:
    """Trains one stage; the model is changed in place.

    Args:
        model: The method's model.
        stage: What is trained, and its loss.
        rows: The training rows.
        config: The section `train` of the configuration.
        epochs: How many times every row is seen; a fraction ends early.
        seed: Of the order of rows and of dropout.
        folder: Where the stage's own resumable checkpoints go.
        max_steps: Stop after this many steps; None runs all epochs.
        is_resumed: Go on from the newest checkpoint in the folder, if there is one.
        reporter: Where progress goes.
    """
    saved = _whole_states(folder) if is_resumed else []
    if stage.before is not None and not saved:
        stage.before()
    steps = math.ceil(epochs * math.ceil(len(rows) / config.batch_size))
    steps = steps if max_steps is None else min(steps, max_steps)
    if steps == 0:
        return
    trained = {id(p) for group in stage.groups for p in group.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    remove(folder / "unfinished")
    with reporter.track(f"train {stage.name}", steps) as advance:
        trainer = _StageTrainer(
            model=_StageModule(model, stage),
            args=_arguments(config, steps, seed, folder / "unfinished"),
            folder=folder,
            rows=rows,
            stage=stage,
            config=config,
            callbacks=[_Progress(advance)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.remove_callback(transformers.ProgressCallback)
        trainer.train(resume_from_checkpoint=str(saved[-1]) if saved else None)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _whole_states(folder: Path) -> list[Path]:
    """Returns the states to go on from, the newest last; those that something else cut short are removed."""
    states = _saved_states(folder)
    for state in states:
        if not _is_whole(state):
            remove(state)
    return [state for state in states if state.exists()]


def _is_whole(state: Path) -> bool:
    """Says whether a state of the Trainer was written to its end: its own facts come last."""
    try:
        json.loads((state / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return True


def has_bf16() -> bool:
    """Says whether the device that would train computes in bf16 at full speed."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capability = torch.backends.cpu.get_cpu_capability()
    return capability in ("AVX512", "AMX") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def wants_bf16(config: TrainConfig) -> bool:
    """Says whether the configured precision is bf16."""
    return config.precision == "bf16" or (config.precision == "auto" and has_bf16())


def _arguments(config: TrainConfig, steps: int, seed: int, folder: Path) -> transformers.TrainingArguments:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(config.warmup_share * steps),
        max_grad_norm=1.0,
        bf16=wants_bf16(config),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        save_steps=500,
        save_total_limit=1,
        logging_steps=20,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a loss is a function of one model: no replicas inside a process
    return arguments
