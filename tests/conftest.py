"""Fixtures that many tests share. A tokenizer is loaded once a run; no test may change one in place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from functionary_vllm.models import ensure_base, ensure_builtin
from functionary_vllm.models.smol import name_token
from tests.real_tokenizers import load_tokenizer
from tests.stand_ins import stand_in

# In CI the same examples every time: chance finds bugs in runs that somebody reads.
settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def llama3_tokenizer() -> Any:
    """functionary v2.5 and v3.0."""
    return load_tokenizer("llama3")


@pytest.fixture(scope="session")
def llama31_tokenizer() -> Any:
    """functionary v3.1, v3.2 and v4r."""
    return load_tokenizer("llama31")


@pytest.fixture(scope="session")
def qwen25_tokenizer() -> Any:
    return load_tokenizer("qwen25")


@pytest.fixture(scope="session")
def qwen3_tokenizer() -> Any:
    return load_tokenizer("qwen3")


@pytest.fixture(scope="session")
def qwen35_tokenizer() -> Any:
    """Qwen3.5 and 3.6, their chat template included; Qwen3.8 has the same vocabulary."""
    return load_tokenizer("qwen35")


@pytest.fixture(scope="session")
def glm45_tokenizer() -> Any:
    """GLM-4.5V, its chat template included; GLM-4.7 has the same vocabulary."""
    return load_tokenizer("glm45")


@pytest.fixture(scope="session")
def glm5_tokenizer() -> Any:
    """GLM-4.7-Flash, its chat template included; GLM-5 has the same vocabulary."""
    return load_tokenizer("glm5")


@pytest.fixture(scope="session")
def spm_v0_tokenizer() -> Any:
    """SentencePiece, 32000 pieces: in place of Llama-2's for functionary v0."""
    return load_tokenizer("spm_v0")


@pytest.fixture(scope="session")
def spm_v1_tokenizer() -> Any:
    return load_tokenizer("spm_v1")


@pytest.fixture(scope="session")
def spm_v2_tokenizer() -> Any:
    return load_tokenizer("spm_v2")


@pytest.fixture(scope="session")
def deepseek_v3_tokenizer() -> Any:
    """DeepSeek-V3, R1 and V3.1."""
    return load_tokenizer("deepseek_v3")


@pytest.fixture(scope="session")
def deepseek_v32_tokenizer() -> Any:
    return load_tokenizer("deepseek_v32")


@pytest.fixture(scope="session")
def deepseek_v4_tokenizer() -> Any:
    return load_tokenizer("deepseek_v4")


@pytest.fixture(scope="session")
def r1_llama_tokenizer() -> Any:
    return stand_in("r1_llama")


@pytest.fixture(scope="session")
def r1_qwen_tokenizer() -> Any:
    return stand_in("r1_qwen")


@pytest.fixture(scope="session")
def gemma3_tokenizer() -> Any:
    return stand_in("gemma3")


@pytest.fixture(scope="session")
def llama4_tokenizer() -> Any:
    return load_tokenizer("llama4")


@pytest.fixture(scope="session")
def mistral_v3_tokenizer() -> Any:
    """SentencePiece, as 7B v0.3 has it."""
    return load_tokenizer("mistral_v3")


@pytest.fixture(scope="session")
def mistral_v11_tokenizer() -> Any:
    return load_tokenizer("mistral_v11")


@pytest.fixture(scope="session")
def mistral_v13_tokenizer() -> Any:
    return load_tokenizer("mistral_v13")


@pytest.fixture(scope="session")
def harmony_tokenizer() -> Any:
    """gpt-oss."""
    return load_tokenizer("harmony")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    """The built-in model's own tokenizer, with its chat template."""
    return load_tokenizer("smollm2")


@pytest.fixture(scope="session")
def functionary_smol_tokenizer(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The base's with the call token named."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("functionary-smol")
    name_token(base_model, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def base_model() -> Path:
    """SmolLM2-135M-Instruct, which knows no calls."""
    return ensure_base()


@pytest.fixture(scope="session")
def builtin_model() -> Path:
    """What is served when no model is named."""
    return ensure_builtin()


@pytest.fixture(scope="session")
def legacy_openai_path() -> Path:
    """A folder for PYTHONPATH that holds openai 0.28.1, the client of the API's first generation."""
    folder = Path(__file__).parents[1] / ".cache" / "openai-0.28.1"
    if not (folder / "openai").is_dir():
        pytest.skip("openai 0.28.1 is not installed; `make install` installs it")
    return folder
