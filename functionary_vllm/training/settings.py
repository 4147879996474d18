"""What a training run is told: its settings, presets of them, and the flags that both become.

In: the command line, over a preset. Out: Settings, and how many processes there are to be. Presets are data: `small` is
what made the built-in model on a CPU, `7b` the hyper-parameters of functionary's own full fine-tuning, as published.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAST = "last"


def _flag(help: str, **options: Any) -> dict[str, Any]:
    """What argparse is told of a field's flag."""
    return {"help": help, **options}


@dataclass(frozen=True, slots=True)
class Settings:
    """One run."""

    base: Path = field(metadata=_flag("folder of the model to train; without it the built-in model's base", type=Path))
    data: tuple[Path, ...] = field(
        metadata=_flag(
            "files of conversations (JSONL, messages as OpenAI's fine-tuning takes them)", type=Path, nargs="+"
        )
    )
    output: Path = field(metadata=_flag("folder for checkpoints, metrics and what was learned", type=Path))
    held_out: Path | None = field(default=None, metadata=_flag("file of conversations to evaluate on", type=Path))
    format: str | None = field(
        default=None, metadata=_flag("prompt format, such as functionary-v3.2; without it what the base shows")
    )
    adapter: Path | None = field(
        default=None, metadata=_flag("begin with this adapter's weights, with a fresh optimizer", type=Path)
    )

    lora_rank: int = field(
        default=16, metadata=_flag("rank of LoRA in all linear layers; 0 trains all weights instead")
    )
    lora_alpha: int = field(default=32, metadata=_flag("LoRA's alpha"))
    train_tokens: tuple[str, ...] = field(
        default=(), metadata=_flag("tokens whose embeddings are trained beside LoRA", type=str, nargs="*")
    )

    max_length: int = field(
        default=4096, metadata=_flag("tokens of a conversation; longer ones are left out, and counted")
    )
    row_tokens: int = field(default=1000, metadata=_flag("tokens that go through the model at once, in one process"))
    rows_per_step: int = field(
        default=2, metadata=_flag("rows that make one step of the optimizer, over all processes")
    )
    first_weight: float = field(default=1.0, metadata=_flag("how much an answer's first token counts: text or call"))
    text_weight: float = field(
        default=1.0, metadata=_flag("how much text counts, for formats whose calls begin with a token of their own")
    )
    decline_weight: float = field(
        default=0.0, metadata=_flag("how much it counts, in such formats, that an answer without a call has none")
    )

    learning_rate: float = field(default=7e-4, metadata=_flag("the highest"))
    schedule: Literal["wsd", "constant", "linear", "cosine"] = field(
        default="wsd",
        metadata=_flag(
            "of the learning rate after its warm-up; wsd: constant, then linear decay",
            choices=("wsd", "constant", "linear", "cosine"),
        ),
    )
    warmup: float = field(default=0.02, metadata=_flag("share of the steps"))
    decay: float = field(default=0.25, metadata=_flag("share of the steps, for wsd"))
    epochs: float = field(default=1.0, metadata=_flag("times that all data is read"))
    steps: int = field(default=0, metadata=_flag("steps of the optimizer, whatever the epochs say"))
    decay_only: int = field(
        default=0, metadata=_flag("end a resumed run: so many more steps, in which the learning rate goes to 0")
    )
    weight_decay: float = field(default=0.0, metadata=_flag("AdamW's"))
    beta2: float = field(default=0.98, metadata=_flag("AdamW's"))
    clip: float = field(default=1.0, metadata=_flag("the gradient's greatest norm"))
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto",
        metadata=_flag("of matrix products; auto: bf16 where the machine has it", choices=("auto", "fp32", "bf16")),
    )
    gradient_checkpointing: bool = field(
        default=False, metadata=_flag("compute twice, to need less memory", action=argparse.BooleanOptionalAction)
    )
    seed: int = field(default=1, metadata=_flag("another seed, another order and other first weights"))

    resume: str | None = field(
        default=None,
        metadata=_flag(
            "go on from this checkpoint; alone: from the last one in the output folder", nargs="?", const=LAST
        ),
    )
    max_minutes: float = field(default=0.0, metadata=_flag("save and stop after this time; --resume goes on"))
    save_every: int = field(default=250, metadata=_flag("steps between checkpoints"))
    keep: int = field(default=3, metadata=_flag("checkpoints to keep; of the others, the adapter is kept"))
    evaluate_every: int = field(default=250, metadata=_flag("steps between evaluations on the held-out file"))
    log_every: int = field(default=10, metadata=_flag("steps between lines in metrics.jsonl"))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "first_weight": 3.0,
        "decline_weight": 9.0,
        "text_weight": 0.25,
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

_EXAMPLES = """
examples:
  functionary-vllm train --preset small --data train.jsonl --held-out held_out.jsonl --output run --processes 2
  functionary-vllm train --preset small --data train.jsonl --held-out held_out.jsonl --output run --resume
A preset's values stand before the defaults below, and what is given here before both.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="functionary-vllm train",
        description="Fine-tune a model to call functions, by LoRA or whole. It learns only what the assistant writes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EXAMPLES,
    )
    made.add_argument("--preset", choices=sorted(PRESETS), help="small: as the built-in model; 7b: a full fine-tuning")
    made.add_argument("--processes", type=int, default=1, help="processes on this machine, each with a share of a step")
    for setting in fields(Settings):
        options = dict(setting.metadata)
        if setting.default is MISSING:
            options["required"] = setting.name != "base"
        elif setting.default:
            options["help"] += f" (default: {setting.default})"
        if "action" not in options and isinstance(setting.default, int | float):
            options["type"] = type(setting.default)
        name = "--" + setting.name.replace("_", "-")
        made.add_argument(name, **options, default=argparse.SUPPRESS)
    return made


def read_settings(arguments: Sequence[str], builtin_base: Any) -> tuple[Settings, int]:
    """The settings, and how many processes. `builtin_base` makes a base in the output folder where none is named."""
    given = vars(parser().parse_args(arguments))
    preset, processes = given.pop("preset"), int(given.pop("processes"))
    if "base" not in given:
        given["base"] = builtin_base(given["output"])
    for name in ("data", "train_tokens"):
        if name in given:
            given[name] = tuple(given[name])
    return Settings(**{**PRESETS.get(preset or "", {}), **given}), processes
