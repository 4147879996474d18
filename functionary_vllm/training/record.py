"""What a run leaves beside its checkpoints: numbers as JSON lines, and each adapter that was saved, by itself.

In: the Trainer's callbacks. Out: `metrics.jsonl`, a line whenever something was logged or evaluated; `adapters/step-N`.
A run that is resumed goes on in the same file: lines of steps that are made again are dropped. Refuses to draw.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from functionary_vllm.training.trainer import PackedTrainer

METRICS = "metrics.jsonl"
ADAPTERS = "adapters"
_SHOWN = {"learning_rate": "lr"}
_NO_METRICS = ("epoch", "total_flos")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Recorder(TrainerCallback):
    """Writes in the main process only. CPU seconds are those of all processes, if they are alike."""

    def __init__(self, trainer: PackedTrainer, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._cpu, self._wall = 0.0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        kept = [line for line in read_metrics(self._folder) if line["step"] <= state.global_step]
        if state.is_world_process_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in kept))
        last: dict[str, Any] = kept[-1] if kept else {}
        self._trainer.tokens = int(last.get("tokens", 0))
        self._cpu = last.get("cpu_s", 0.0) - time.process_time() * args.world_size
        self._wall = last.get("wall_s", 0.0) - time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        line: dict[str, Any] = {"step": state.global_step, "tokens": self._trainer.tokens}
        line |= {
            "cpu_s": round(self._cpu + time.process_time() * args.world_size, 1),
            "wall_s": round(self._wall + time.monotonic(), 1),
        }
        line |= {_SHOWN.get(name, name): value for name, value in logs.items() if name not in _NO_METRICS}
        with (self._folder / METRICS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        saved = self._folder / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not (saved / "adapter_config.json").is_file():
            return
        target = self._folder / ADAPTERS / f"step-{state.global_step}"
        target.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(saved / name, target / name)
