"""The cache publishes whole folders only, and the base is what it says it is."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from functionary_vllm.models import builtin, cache
from functionary_vllm.models.cache import MANIFEST, cache_folder, ensure_folder, find_damage


class Builder:
    """Fills a folder with two files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.runs = 0
        self.reports: list[str] = []

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        (folder / "a.txt").write_text("alpha")
        (folder / "deep").mkdir()
        (folder / "deep" / "b.bin").write_bytes(bytes(range(256)))

    def ensure(self, folder: Path, stamp: str = "one") -> Path:
        return ensure_folder(folder, stamp, self, self.reports.append)


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    builder = Builder()
    folder = builder.ensure(tmp_path / "cache" / "thing")
    assert builder.ensure(folder) == folder
    assert builder.runs == 1
    assert (folder / "deep" / "b.bin").read_bytes() == bytes(range(256))
    assert [line for line in builder.reports if str(folder) in line and "not there" in line]


def _shorten(folder: Path) -> None:
    (folder / "a.txt").write_text("alph")


def _flip(folder: Path) -> None:
    (folder / "deep" / "b.bin").write_bytes(bytes(255) + b"x")


def _lose(folder: Path) -> None:
    (folder / "a.txt").unlink()


def _lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _garble_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"stamp": "one", "files": [1]}')


@pytest.mark.parametrize("damage", [_shorten, _flip, _lose, _lose_manifest, _garble_manifest])
def test_a_damaged_folder_is_built_again(tmp_path: Path, damage: Any) -> None:
    builder = Builder()
    folder = builder.ensure(tmp_path / "thing")
    damage(folder)
    assert find_damage(folder, "one") is not None
    builder.ensure(folder)
    assert builder.runs == 2
    assert find_damage(folder, "one") is None
    assert (folder / "a.txt").read_text() == "alpha"


def test_another_stamp_builds_again(tmp_path: Path) -> None:
    builder = Builder()
    folder = builder.ensure(tmp_path / "thing", "one")
    builder.ensure(folder, "two")
    assert builder.runs == 2
    assert json.loads((folder / MANIFEST).read_text())["stamp"] == "two"


def test_a_failed_build_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    folder = Builder().ensure(tmp_path / "thing")

    def fail(scratch: Path) -> None:
        (scratch / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ensure_folder(folder, "two", fail, lambda line: None)
    assert find_damage(folder, "one") is None
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["thing"]


def test_two_at_a_time_build_once(tmp_path: Path) -> None:
    builder = Builder()
    inside, go_on = threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        inside.set()
        assert go_on.wait(30)
        builder(folder)

    first = threading.Thread(target=ensure_folder, args=(tmp_path / "thing", "one", slowly, builder.reports.append))
    second = threading.Thread(target=builder.ensure, args=(tmp_path / "thing",))
    first.start()
    assert inside.wait(30)
    second.start()
    go_on.set()
    first.join(30)
    second.join(30)
    assert builder.runs == 1


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"FUNCTIONARY_VLLM_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/functionary-vllm"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/functionary-vllm"),
        ({}, "/home/me/.cache/functionary-vllm"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str) -> None:
    for name in ("FUNCTIONARY_VLLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "PACKAGE", "no-such-package-at-all")
    with pytest.raises(builtin.ModelUnavailable, match="make install"):
        builtin.find_source()


def test_a_foreign_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "sha256", lambda path: "0" * 64)
    with pytest.raises(builtin.ModelUnavailable, match="reinstall"):
        builtin.find_source()


def test_a_failing_build_shows_its_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUNCTIONARY_VLLM_CACHE", str(tmp_path))
    source = tmp_path / "broken.gguf"
    source.write_bytes(b"not a model")
    monkeypatch.setattr(builtin, "find_source", lambda: source)
    with pytest.raises(builtin.ModelUnavailable, match=r"Traceback[\s\S]*Error"):
        builtin.ensure_base()
    assert "not there" in capsys.readouterr().err


def test_the_package_imports_nothing_heavy() -> None:
    code = "import functionary_vllm.models, sys; print({'torch', 'transformers', 'gguf', 'vllm'} & {*sys.modules})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_the_base_is_whole(base_model: Path) -> None:
    config = json.loads((base_model / "config.json").read_text())
    generation = json.loads((base_model / "generation_config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (30, 576, 49152)
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", True)
    assert generation["eos_token_id"] == 2
    assert {path.name for path in base_model.iterdir()} >= {"model.safetensors", "tokenizer.json", MANIFEST}
    assert cache.find_damage(base_model, builtin.base_stamp()) is None


def test_the_weights_of_the_base_are_dense_and_finite(base_model: Path) -> None:
    import torch
    from safetensors import safe_open

    with safe_open(base_model / "model.safetensors", framework="pt") as weights:
        embeddings = weights.get_tensor("model.embed_tokens.weight")
        assert len(list(weights.keys())) == 272  # 30 layers of 9, the embeddings, the last norm
        assert all(weights.get_slice(name).get_dtype() == "BF16" for name in weights.keys())  # noqa: SIM118
    assert embeddings.shape == (49152, 576)
    assert bool(torch.isfinite(embeddings).all())
    assert 0.01 < float(embeddings.float().std()) < 1.0


def test_the_tokenizer_of_the_base_speaks_chatml(smollm2_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    text = smollm2_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (smollm2_tokenizer.eos_token, smollm2_tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert smollm2_tokenizer.model_max_length == 8192
