"""A training run, from the command line's words to a folder with what was learned.

In: options over a preset. Out: in the output folder checkpoints, `final/` (an adapter, or a whole model), the metrics
and their plot. Stops cleanly at its time limit or at a signal, and goes on from there when it is resumed. With several
processes on one machine it starts itself again under torchrun.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from functionary_vllm.training.settings import LAST, Settings, read_settings

# Huge pages, and memory that is kept instead of given back: half the time of a first minute, a tenth of the others.
_MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings, processes = read_settings(arguments, _builtin_base)
    if "LOCAL_RANK" not in os.environ and (processes > 1 or "GLIBC_TUNABLES" not in os.environ):
        _start([*arguments, "--base", str(settings.base)], processes)
    from functionary_vllm.training.dataset.examples import BrokenLine
    from functionary_vllm.training.model import CannotTrain

    try:
        train(settings)
    except (BrokenLine, CannotTrain, FileNotFoundError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


def _start(arguments: list[str], processes: int) -> None:
    """The same command once more, in place of this process: with memory settings that only count at the start."""
    os.environ.setdefault("GLIBC_TUNABLES", _MALLOC)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execv(sys.executable, [*launch, "functionary_vllm.training.run", *arguments])


def _builtin_base(output: Path) -> Path:
    """The built-in model before its training, made once."""
    from functionary_vllm.models import ensure_base
    from functionary_vllm.models.smol import WEIGHTS, prepare_base

    folder = output / "base"
    return folder if (folder / WEIGHTS).is_file() else prepare_base(ensure_base(), folder)


def train(settings: Settings) -> None:
    """Raises BrokenLine, CannotTrain."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer, set_seed

    from functionary_vllm.training import model as models
    from functionary_vllm.training.packing import Collator
    from functionary_vllm.training.record import Recorder
    from functionary_vllm.training.trainer import PackedTrainer, Rows

    set_seed(settings.seed)
    checkpoint = _checkpoint(settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    fmt = _format(settings, tokenizer)
    rows = _rows(settings.data, fmt, settings, "training")
    call_token = fmt.alphabet.ids.get(fmt.call_begin)
    if call_token is None and (settings.text_weight, settings.decline_weight) != (1, 0):
        raise models.CannotTrain(f"text_weight, decline_weight: in {fmt.name} no token tells a call from text.")
    held_out = None if settings.held_out is None else _rows((settings.held_out,), fmt, settings, "held out")
    model = models.load_model(settings, tokenizer)
    arguments = _training_arguments(settings, len(rows), checkpoint)
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        train_dataset=Rows(rows),
        eval_dataset=None if held_out is None else Rows(held_out),
        data_collator=Collator(
            first_weight=settings.first_weight,
            text_weight=settings.text_weight,
            decline_weight=settings.decline_weight,
            call_token=call_token,
            mask=not arguments.use_cpu,
        ),
        processing_class=tokenizer,
        first_token=call_token,
        max_minutes=settings.max_minutes,
    )
    trainer.add_callback(Recorder(trainer, settings.output))
    if trainer.is_world_process_zero():
        settings.output.mkdir(parents=True, exist_ok=True)
        shown = json.dumps({**asdict(settings), "format": fmt.name, "rows": len(rows)}, indent=1, default=str)
        (settings.output / "settings.json").write_text(shown + "\n")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if held_out is not None and not trainer.stopping:
        trainer.evaluate()
    trainer.save_model(str(settings.output / "final"))
    if trainer.is_world_process_zero():
        from functionary_vllm.training.plots import draw_metrics

        draw_metrics(settings.output)


def _checkpoint(settings: Settings) -> Path | None:
    from functionary_vllm.training.model import CannotTrain, latest_checkpoint

    if settings.resume is None:
        if settings.decay_only:
            raise CannotTrain("decay_only goes on from a run: say --resume.")
        return None
    found = latest_checkpoint(settings.output) if settings.resume == LAST else Path(settings.resume)
    if found is None or not found.is_dir():
        raise CannotTrain(f"there is no checkpoint in {found or settings.output}.")
    return found


def _format(settings: Settings, tokenizer: Any) -> Any:
    from functionary_vllm.formats import UnknownFormat, detect_format, get_format
    from functionary_vllm.training.model import CannotTrain

    try:
        return get_format(settings.format or detect_format(tokenizer), tokenizer)
    except UnknownFormat as error:
        raise CannotTrain(str(error)) from None


def _rows(paths: Sequence[Path], fmt: Any, settings: Settings, what: str) -> Any:
    """The rows of these files; what they are is told once."""
    from functionary_vllm.training.dataset.examples import read_examples
    from functionary_vllm.training.model import CannotTrain
    from functionary_vllm.training.packing import pack

    rows, examples, too_long, learned = [], 0, 0, 0
    for path in paths:
        found = read_examples(path, fmt, settings.max_length)
        rows += pack(found.examples, settings.row_tokens)
        examples, too_long = examples + len(found.examples), too_long + found.too_long
        learned += sum(end - begin for example in found.examples for begin, end in example.turns)
    if not rows:
        raise CannotTrain(f"nothing to learn in {', '.join(map(str, paths))}.")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        tokens = sum(row.size for row in rows)
        left = f"; {too_long} left out, longer than {settings.max_length} tokens" if too_long else ""
        print(f"{what}: {examples} examples, {tokens} tokens in {len(rows)} rows, {learned} learned{left}", flush=True)
    return rows


def _training_arguments(settings: Settings, rows: int, checkpoint: Path | None) -> Any:
    import torch
    from transformers import TrainingArguments

    from functionary_vllm.training.model import CannotTrain, precision

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.rows_per_step % world:
        raise CannotTrain(f"rows_per_step ({settings.rows_per_step}) must be a multiple of the {world} processes.")
    done = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    steps = settings.steps or math.ceil(rows * settings.epochs / settings.rows_per_step)
    decay = round(settings.decay * steps)
    if settings.decay_only:
        steps, decay = done + settings.decay_only, settings.decay_only
    wsd = settings.schedule == "wsd" or settings.decay_only
    schedule = "warmup_stable_decay" if wsd else settings.schedule.replace("constant", "constant_with_warmup")
    cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(settings.output),
        use_cpu=cpu,
        bf16=precision(settings) == "bf16",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.rows_per_step // world,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"} if wsd else {},
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.clip,
        gradient_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=settings.keep,
        eval_strategy="no" if settings.held_out is None else "steps",
        eval_steps=settings.evaluate_every,
        logging_steps=settings.log_every,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
        ddp_backend="gloo" if cpu and world > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )


if __name__ == "__main__":
    sys.exit(main())
