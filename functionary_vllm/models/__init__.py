"""The built-in model as a Hugging Face folder, made from a package and an adapter, and kept in the cache."""

from functionary_vllm.models.builtin import BUILTIN_NAME, ensure_base, ensure_builtin
from functionary_vllm.models.cache import cache_folder, ensure_folder, find_damage

__all__ = ["BUILTIN_NAME", "cache_folder", "ensure_base", "ensure_builtin", "ensure_folder", "find_damage"]
