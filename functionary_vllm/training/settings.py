"""What a training run is told: its settings, and presets of them.

In: command line options over a preset. Out: Settings. Presets are data; `small` is what made the built-in model on a
laptop's CPU, `7b` the published hyper-parameters of functionary's own full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. Sizes are in tokens; `rows_per_step` counts over all processes."""

    base: Path
    data: tuple[Path, ...]
    output: Path
    held_out: Path | None = None
    format: str | None = None  # None: what the base's own files show
    adapter: Path | None = None  # go on with these LoRA weights, with a fresh optimizer
    # what is trained
    lora_rank: int = 16  # 0: all weights
    lora_alpha: int = 32
    top_layers: int = 0  # LoRA in so many last layers only; 0: in all
    train_tokens: tuple[str, ...] = ()
    # rows
    max_length: int = 4096
    row_tokens: int = 1000
    rows_per_step: int = 2
    first_weight: float = 1.0
    # steps
    learning_rate: float = 7e-4
    schedule: Literal["wsd", "constant", "linear", "cosine"] = "wsd"
    warmup: float = 0.02
    decay: float = 0.25
    epochs: float = 1.0
    steps: int = 0  # 0: as many as the epochs have
    decay_only: int = 0  # so many steps from where the resumed run stands, the learning rate going down to 0
    weight_decay: float = 0.0
    beta2: float = 0.98
    clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    seed: int = 1
    # keeping
    resume: str | None = None  # a checkpoint's folder, or "last"
    save_every: int = 250
    keep: int = 3
    evaluate_every: int = 250
    log_every: int = 10
    max_minutes: float = 0.0  # 0: no limit


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "first_weight": 3.0,
        "train_tokens": ("<|function_call|>",),
        "max_length": 2048,
    },
    "7b": {
        "lora_rank": 0,
        "row_tokens": 4096,
        "rows_per_step": 64,
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "warmup": 0.03,
        "epochs": 2.0,
        "weight_decay": 0.3,
        "beta2": 0.999,
        "gradient_checkpointing": True,
    },
}
