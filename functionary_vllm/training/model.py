"""The model that is trained: a base's folder, all of its weights or LoRA beside them, and rows of single tokens.

In: Settings and a tokenizer. Out: a causal language model, ready for rows of trees. With LoRA the base is frozen in the
arithmetic's type, and what the layers add up stays in float32. Refuses what would train something else than it says:
tokens that the tokenizer does not have, rows that reach beyond a sliding window.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from functionary_vllm.training.attention import NAME
from functionary_vllm.training.settings import LINEARS, Settings


class CannotTrain(ValueError):
    """The settings do not fit one another, the machine or the base."""


def precision(settings: Settings) -> str:
    """bf16 where the machine computes it faster than fp32, else fp32."""
    if settings.precision != "auto":
        return settings.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def load_model(settings: Settings, tokenizer: Any) -> Any:
    """The model, on the CPU; the Trainer moves it."""
    frozen = settings.lora_rank > 0
    dtype = torch.bfloat16 if frozen and precision(settings) == "bf16" else torch.float32
    attention = "sdpa" if torch.cuda.is_available() else NAME
    model: Any = AutoModelForCausalLM.from_pretrained(settings.base, dtype=dtype, attn_implementation=attention)
    window = getattr(model.config, "sliding_window", None)
    if window and max(settings.row_tokens, settings.max_length) > window:
        raise CannotTrain(f"the base sees {window} tokens back: neither row_tokens nor max_length may be more.")
    model.config.use_cache = False
    if frozen:
        model = _with_lora(model, settings, [token_id(tokenizer, token) for token in settings.train_tokens])
    elif settings.train_tokens:
        raise CannotTrain("train_tokens is for LoRA; all weights are trained anyway.")
    if dtype == torch.bfloat16:
        model.get_input_embeddings().register_forward_hook(_to_float)
    return model


def token_id(tokenizer: Any, token: str) -> int:
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise CannotTrain(f"the base has no token {token!r}; tokens to train must be in its vocabulary.")
    return int(found)


def _with_lora(model: Any, settings: Settings, tokens: list[int]) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if settings.adapter is not None:
        model = PeftModel.from_pretrained(model, settings.adapter, is_trainable=True)
    else:
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules=list(LINEARS),
            trainable_token_indices=tokens or None,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # steps are smaller than what bfloat16 can tell apart
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # autocast does it, once
        if hasattr(module, "trainable_tokens_delta"):
            module.forward_adapters = types.MethodType(_with_rows, module)
    return model


def _to_float(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _with_rows(layer: Any, x: Tensor, active_adapters: Any, *args: Any, **options: Any) -> Tensor:
    """peft's TrainableTokensLayer, at a cost that does not grow with the vocabulary: it would copy the embeddings, and
    make gradients for all of them."""
    weight = layer.base_layer.weight
    if layer.disable_adapters or layer.merged or not active_adapters:
        plain: Tensor = layer.base_layer(x)
        return plain
    (name,) = active_adapters
    rows, ids = layer.trainable_tokens_delta[name], layer.token_indices[name]
    if isinstance(layer.base_layer, nn.Embedding):
        output = F.embedding(x, weight, layer.base_layer.padding_idx)
        for i, token in enumerate(ids):
            output = torch.where((x == token).unsqueeze(-1), rows[i].to(output.dtype), output)
        return output
    output = F.linear(x, weight)
    return output.index_copy_(-1, torch.tensor(ids, device=x.device), F.linear(x, rows).to(output.dtype))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps; None where there is none."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
