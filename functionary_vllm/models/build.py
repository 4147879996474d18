"""Unpacks the built-in model. Run as a process: `python -m functionary_vllm.models.build GGUF FOLDER`.

In: SmolLM2's GGUF file. Out: a Hugging Face folder with config, dense bfloat16 weights, tokenizer and chat template,
and what GGUF cannot carry or transformers does not read from it set right. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path


def build(source: Path, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The file says `tokenizer.ggml.pre = smollm`: digits stand alone, then GPT-2's splitting. Only the latter is read.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
