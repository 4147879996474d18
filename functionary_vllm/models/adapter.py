"""A LoRA adapter merged into the weights it was trained on, with nothing but safetensors.

In: a base's folder and an adapter's, in the files that peft writes. Out: the base's folder once more, with each linear
W + alpha / r * B * A, computed in float32, and the rows of trained tokens put in their places. peft, which does the
same, is for training; a server has no need of it. What it does not understand it refuses: an adapter half merged is
another model. Refuses to know what the model is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from functionary_vllm.models.cache import MANIFEST

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"
_ROWS = ".token_adapter.trainable_tokens_delta"
# What would change the arithmetic without a tensor that tells of it.
_UNKNOWN = ("alpha_pattern", "fan_in_fan_out", "layer_replication", "rank_pattern", "use_qalora", "use_rslora")

Change = Callable[["Tensor"], "Tensor"]


class AdapterRefused(ValueError):
    """The adapter has something that is not merged here, or does not belong to this base."""


def merge_adapter(base: Path, adapter: Path, folder: Path) -> Path:
    """Write `base` with `adapter` merged into `folder`, which it returns. Raises AdapterRefused."""
    from safetensors.torch import load_file, save_file

    changes = _read_changes(adapter)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(base.iterdir()):
        if path.suffix == ".safetensors":
            weights = load_file(path)
            for name in changes.keys() & weights.keys():
                weights[name] = changes.pop(name)(weights[name])
            save_file(weights, folder / path.name, metadata={"format": "pt"})
            (folder / path.name).chmod(0o644)  # safetensors would keep it to its owner
        elif path.is_file() and path.name != MANIFEST:
            shutil.copyfile(path, folder / path.name)
    if changes:
        raise AdapterRefused(f"{adapter} changes {min(changes)}, which is not in {base}")
    return folder


def _read_changes(adapter: Path) -> dict[str, Change]:
    """The names of the weights that the adapter changes, and how."""
    from safetensors.torch import load_file

    config = json.loads((adapter / CONFIG).read_text())
    unknown = [name for name in _UNKNOWN if config.get(name)]
    if config["peft_type"] != "LORA" or unknown:
        raise AdapterRefused(f"{adapter / CONFIG}: {', '.join(unknown) or config['peft_type']} cannot be merged here")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(adapter / WEIGHTS).items()}
    changes: dict[str, Change] = {}
    for name in sorted(tensors):
        module = name.removesuffix(_LORA_A).removesuffix(_ROWS)
        if name.endswith(_LORA_A) and module + _LORA_B in tensors:
            scale = config["lora_alpha"] / config["r"]
            changes[module + ".weight"] = _add(tensors[name], tensors[module + _LORA_B], scale)
        elif name.endswith(_ROWS):
            changes[module + ".weight"] = _put(tensors[name], _token_ids(config, module))
        elif not (name.endswith(_LORA_B) and name.removesuffix(_LORA_B) + _LORA_A in tensors):
            raise AdapterRefused(f"{adapter / WEIGHTS}: {name} cannot be merged here")
    return changes


def _token_ids(config: dict[str, Any], module: str) -> list[int]:
    """The ids of the trained rows; peft takes a list for the input embeddings, or says which layer has which."""
    ids = config["trainable_token_indices"]
    return list(ids[module.rpartition(".")[2]] if isinstance(ids, dict) else ids)


def _add(a: Tensor, b: Tensor, scale: float) -> Change:
    return lambda weight: (weight.float() + (b.float() @ a.float()) * scale).to(weight.dtype)


def _put(rows: Tensor, ids: list[int]) -> Change:
    def put(weight: Tensor) -> Tensor:
        weight[ids] = rows.to(weight.dtype)
        return weight

    return put
