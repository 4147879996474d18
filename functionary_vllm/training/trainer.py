"""Hugging Face's Trainer on packed rows: the weighted loss, the clock, and the evaluation by teacher forcing.

In: a model, Rows, TrainingArguments. Out: checkpoints, and numbers for callbacks. The loss of a step is the weighted
mean over all that its rows learn, in whatever process they are. Logits are made only where something is learned, by
the model's own `logits_to_keep`, so the model may be wrapped and sharded. Refuses to know formats and files.
"""

from __future__ import annotations

import inspect
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from functionary_vllm.training.packing import Row
from functionary_vllm.training.scores import Scores


class Rows(Dataset[Row]):
    """Rows as torch wants them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class PackedTrainer(Trainer):
    """`first_token` is what a call begins with, where that is one token. `tokens` counts what all processes read."""

    def __init__(self, *, first_token: int | None = None, max_minutes: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # so that the loss, a mean over the whole step, is not divided again
        self.tokens = 0
        self.stopping = False
        self._first_token = first_token
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        unwrapped: Any = self.model
        base = unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.add_callback(_Stop(self))

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Save and end after this step. Good as a signal's handler."""
        self._deadline = 0.0

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """The sum of weights in a step, over all processes; on the same way, tokens and whether to stop."""
        weights = sum(float(batch["weights"].sum() + batch["declines"].sum()) for batch in batch_samples)
        tokens = sum(batch["input_ids"].numel() for batch in batch_samples)
        late = time.monotonic() > self._deadline
        told = torch.tensor([weights, tokens, late], dtype=torch.float64).to(device, torch.float32)
        if self.args.world_size > 1:
            told = self.accelerator.reduce(told, "sum")
        self.tokens += int(told[1])
        self.stopping = bool(told[2])
        return told[0]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits, nll = self._nll(model, inputs)
        loss = (nll * inputs["weights"]).sum()
        if self._first_token is not None:
            # Of the same softmax as nll: log P(call), from which log(1 - P(call)).
            at = inputs["targets"][:, None]
            call = (logits[:, self._first_token] - logits.gather(1, at)[:, 0] - nll).clamp(max=-1e-6)
            loss = loss - (torch.log(-torch.expm1(call)) * inputs["declines"]).sum()
        # Gradients are averaged over the processes.
        return loss * self.accelerator.num_processes / num_items_in_batch

    def _nll(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Of each place that is learned: the logits, and minus the logarithm of its token's probability."""
        passed = {
            name: inputs[name] for name in ("input_ids", "position_ids", "attention_mask", "tree") if name in inputs
        }
        keep = inputs["logits_to_keep"]
        logits = model(**passed, logits_to_keep=keep).logits[0] if self._keeps else model(**passed).logits[0, keep]
        logits = logits.float()
        return logits, cross_entropy(logits, inputs["targets"], reduction="none")

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What the model would say, all of the right answer before each token being given."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        collator: Any = self.data_collator
        collator, scores = replace(collator, spans=True), Scores(self._first_token)
        model: Any = self.model_wrapped if self.is_fsdp_enabled else self.model
        model.eval()
        rank, world = self.args.process_index, self.args.world_size
        with torch.no_grad(), self.accelerator.autocast():
            for i in range(rank, len(dataset), world):
                inputs = self._prepare_inputs(collator([dataset[i]]))
                logits, nll = self._nll(model, inputs)
                scores.add(nll.cpu(), logits.argmax(-1).cpu(), inputs)
        if world > 1:
            others: list[Any] = [None] * world
            torch.distributed.all_gather_object(others, scores.counts)
            scores.take(others[:rank] + others[rank + 1 :])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.shares().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Stop(TrainerCallback):
    """Saves and ends when the time is over, or at a signal."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self._trainer = trainer
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._trainer.stop)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._trainer.stopping:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
