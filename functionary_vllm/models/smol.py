"""From SmolLM2 to what functionary-smol is trained on: one token gets a name and a beginning.

In: the folder of the untouched base (`ensure_base`). Out: the same, with token 13 renamed to `<|function_call|>` and
its embedding row set (`prepare_base`); training starts from it, and the trained adapter is merged into it. SmolLM2
never met that token: its row is the same as those of ten others, and as output embeddings are tied to it, a model
could not tell them apart. Refuses to know what is trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from functionary_vllm.models.cache import MANIFEST

CALL_TOKEN = "<|function_call|>"
CALL_ID = 13
UNTRAINED = "<jupyter_code>"
# The row starts as a mix of two that the base knows: a prompt sign, and the word.
LIKE = {">>>": 0.6, " call": 0.6}
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
EMBEDDINGS = "model.embed_tokens.weight"


def prepare_base(base: Path, folder: Path) -> Path:
    """Write the base for training into `folder`: the call token named, its embedding row begun. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    name_token(base, folder)
    _begin_row(base / WEIGHTS, folder)
    return folder


def name_token(base: Path, folder: Path) -> None:
    """All of the base but its weights, with the call token in the vocabulary."""
    for path in base.iterdir():
        if path.name not in (WEIGHTS, TOKENIZER, MANIFEST):
            shutil.copyfile(path, folder / path.name)
    tokenizer = json.loads((base / TOKENIZER).read_text())
    vocabulary = tokenizer["model"]["vocab"]
    token = next(token for token in tokenizer["added_tokens"] if token["id"] == CALL_ID)
    if token["content"] != UNTRAINED or vocabulary.pop(UNTRAINED) != CALL_ID:
        raise ValueError(f"token {CALL_ID} of {base} is not {UNTRAINED}")
    token["content"] = CALL_TOKEN
    vocabulary[CALL_TOKEN] = CALL_ID
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False))


def _begin_row(source: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    weights = load_file(source)
    rows = weights[EMBEDDINGS]
    row = torch.zeros(rows.shape[1])
    for text, share in LIKE.items():
        (token_id,) = tokenizer.encode(text, add_special_tokens=False).ids
        row += share * rows[token_id].float()
    rows[CALL_ID] = row.to(rows.dtype)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors would keep it to its owner
