"""From SmolLM2 to functionary-smol. Run as a process: `python -m functionary_vllm.models.smol BASE ADAPTER FOLDER`.

In: the folder of the untouched base (`ensure_base`). Out of `prepare_base`: the same, with token 13 renamed to
`<|function_call|>` and its embedding row set; training starts there. SmolLM2 never met that token: its row is that of
ten others too, and as the output embeddings are tied to it, no model could tell them apart. Out of `build`, which also
takes the trained adapter: the model that is served. Refuses to know how it is trained.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from functionary_vllm.models.adapter import merge_adapter
from functionary_vllm.models.cache import MANIFEST

CALL_TOKEN = "<|function_call|>"
CALL_ID = 13
UNTRAINED = "<jupyter_code>"
# The row starts as a mix of two that the base knows: a prompt sign, and the word.
LIKE = {">>>": 0.6, " call": 0.6}
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
GENERATION = "generation_config.json"
EMBEDDINGS = "model.embed_tokens.weight"


def build(base: Path, adapter: Path, folder: Path) -> None:
    """Write functionary-smol into `folder`."""
    with TemporaryDirectory(dir=folder) as prepared:
        merge_adapter(prepare_base(base, Path(prepared)), adapter, folder)
    # So small a model says its best where it says what is likeliest; a request's own temperature wins.
    generation = json.loads((folder / GENERATION).read_text())
    (folder / GENERATION).write_text(json.dumps({**generation, "temperature": 0.0}, indent=2) + "\n")


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


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:4]))
