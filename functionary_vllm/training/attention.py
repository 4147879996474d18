"""Attention over packed rows, branch by branch: what no branch may see is not computed.

In: what transformers hands to an attention function, and `tree`, the lengths of the row's trees. Out: the attention's
output, as from the same row with a mask. Meant for CPUs, where attention over a whole row of 1,000 tokens costs more
than all else, and PyTorch's own kernel for it goes back slowly in small blocks. Without `tree` it is PyTorch's.
Refuses to know windows: a row must not be longer than a model's sliding window.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "functionary_tree"


def tree_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`query` is (1, heads, tokens, size); `key` and `value` may have fewer heads, each for several of the query's."""
    tree, scale = options.pop("tree", None), options.get("scaling")
    if tree is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    heads, tokens, size = key.shape[1:]
    grouped = query.shape[1] // heads
    scale = size**-0.5 if scale is None else scale
    queries = query[0].to(value.dtype).view(heads, grouped, tokens, size)
    keys, values = key[0].to(value.dtype), value[0]
    parts = []
    for start, shared, branches in tree:
        begin = start + shared
        first_keys, first_values = keys[:, start:begin], values[:, start:begin]
        if shared:
            parts.append(_block(queries[:, :, start:begin], first_keys, first_values, scale))
        for length in branches:
            own = slice(begin, begin + length)
            seen = torch.cat((first_keys, keys[:, own]), 1), torch.cat((first_values, values[:, own]), 1)
            parts.append(_block(queries[:, :, own], *seen, scale))
            begin += length
    return torch.cat(parts, 2).permute(2, 0, 1, 3).reshape(1, tokens, -1, size), None


def _block(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Tokens that see all before them: as many keys as queries, and those of the shared beginning before."""
    heads, grouped, length, size = queries.shape
    unseen = _unseen(keys.shape[1] - length, length, grouped, queries.dtype)
    flat = queries.reshape(heads, grouped * length, size)
    scores = torch.baddbmm(unseen.to(queries.device), flat, keys.transpose(1, 2), alpha=scale)
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
    return torch.bmm(shares, values).view(heads, grouped, length, size)


@lru_cache(1024)
def _unseen(before: int, length: int, grouped: int, dtype: torch.dtype) -> Tensor:
    bias = torch.full((length, before + length), float("-inf"), dtype=dtype).triu(before + 1)
    return bias.repeat(grouped, 1)


AttentionInterface.register(NAME, tree_attention)
