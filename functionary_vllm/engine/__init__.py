"""Engines: what turns token ids into more token ids. `base` is the protocol, `vllm` and `replay` keep it."""
