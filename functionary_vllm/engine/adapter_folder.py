"""Whether a folder holds a LoRA adapter that fits the base: what PEFT wrote there, read without loading it.

In: a folder, the greatest rank there is room for, the base's folder. Out: nothing, or InvalidRequest with the reason.
vLLM would copy weights of another shape into a part of its own, or leave out layers that it has not, and say nothing;
so shapes are held against those of the base's own weights, as far as these show them. Refuses to know engines, and
what the engine can do with the modules: that it says itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from functionary_vllm.errors import InvalidRequest

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MATRIX = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"\.\d+\.")
_PLAIN = frozenset({"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})  # others pack several weights into one

Shape = tuple[int, ...]


def check_adapter(path: str, max_rank: int | None = None, base: Path | None = None) -> None:
    """Blocks, for as long as it takes to read the heads of some files. Raises InvalidRequest."""
    folder = Path(path)
    if not folder.is_dir():
        raise _refused(f"{path} is no folder on the server")
    ranks = _check_config(folder)
    if max_rank is not None and max(ranks) > max_rank:
        raise _refused(f"its rank is {max(ranks)}, and there is room for {max_rank} (--max-lora-rank)")
    if not (folder / _WEIGHTS).is_file():
        raise _refused(f"there is no {_WEIGHTS} in {path}")
    try:
        _check_shapes(_matrices(folder / _WEIGHTS), ranks, _modules(base) if base is not None else {})
    except (OSError, SafetensorError) as error:
        raise _refused(f"{_WEIGHTS} cannot be read ({error})") from None


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The adapter cannot be loaded: {reason}.", param="lora_path")


def _check_config(folder: Path) -> set[int]:
    """The ranks that it names."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _refused(f"there is no {_CONFIG} in {folder}") from None
    except (OSError, ValueError) as error:
        raise _refused(f"{_CONFIG} cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise _refused(f"{_CONFIG} is no JSON object")
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise _refused(f"its peft_type is {kind!r}, not LORA")
    targets = config.get("target_modules")
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise _refused("target_modules must be a list of names, or a pattern")
    if not _is_number(config.get("lora_alpha")):
        raise _refused("lora_alpha must be a number")
    patterns = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else (None,))]
    if not all(_is_number(rank) and isinstance(rank, int) and rank > 0 for rank in ranks):
        raise _refused("r, and what rank_pattern has, must be whole numbers above 0")
    return set(ranks)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _matrices(file: Path) -> dict[str, dict[str, Shape]]:
    """By module, the shapes of A and B."""
    found: dict[str, dict[str, Shape]] = {}
    for name, _, shape in _tensors(file):
        if match := _MATRIX.fullmatch(name):
            found.setdefault(match["module"], {})[match["side"]] = shape
    if not found:
        raise _refused(f"{_WEIGHTS} has no LoRA weights")
    return found


def _tensors(file: Path) -> Iterator[tuple[str, str, Shape]]:
    """Names, types and shapes; the numbers are not read."""
    with safe_open(file, framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - it is no dict
            tensor = weights.get_slice(name)
            yield name, tensor.get_dtype(), tuple(tensor.get_shape())


@lru_cache(maxsize=1)
def _modules(base: Path) -> dict[str, Shape | None]:
    """By module of the base, the shape of its weight; None where that is packed."""
    found: dict[str, Shape | None] = {}
    for file in sorted(base.glob("*.safetensors")):
        for name, kind, shape in _tensors(file):
            module, _, what = name.rpartition(".")
            plain = what == "weight" and kind in _PLAIN
            found[module] = shape if plain else found.get(module)
    if (tied := found.get("model.embed_tokens")) is not None:
        found.setdefault("lm_head", tied)
    return found


def _check_shapes(
    adapter: Mapping[str, Mapping[str, Shape]], ranks: set[int], base: Mapping[str, Shape | None]
) -> None:
    kinds = {_LAYER.sub(".", module) for module in base}
    for module, sides in adapter.items():
        if ".experts" in module:  # layouts of their own
            continue
        a, b = sides.get("A"), sides.get("B")
        if a is None or b is None or len(a) != 2 or len(b) != 2:
            raise _refused(f"{module} needs a lora_A and a lora_B of two dimensions")
        if a[0] != b[1] or a[0] not in ranks:
            raise _refused(f"{module} is of rank {a[0]} and {b[1]}, its config says {_words(ranks)}")
        wanted = base.get(module)
        if wanted is not None and (b[0], a[1]) != wanted:
            raise _refused(f"{module} is {b[0]} x {a[1]}, and {wanted[0]} x {wanted[1]} in the base that is served")
        if module not in base and _LAYER.sub(".", module) in kinds and _LAYER.search(module):
            raise _refused(f"the base that is served has no {module}")


def _words(ranks: set[int]) -> str:
    return " or ".join(str(rank) for rank in sorted(ranks))
