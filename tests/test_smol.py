"""functionary-smol: its base for training, the merge of an adapter, and the model that comes of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from functionary_vllm.formats import detect_format
from functionary_vllm.models import builtin, cache
from functionary_vllm.models.adapter import CONFIG, WEIGHTS, AdapterRefused, merge_adapter
from functionary_vllm.models.smol import CALL_ID, CALL_TOKEN, EMBEDDINGS, UNTRAINED, prepare_base

LINEAR = "model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """An adapter as peft writes it: of rank 2 and alpha 3, unless `config` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}))
    return folder


def write_base(folder: Path) -> dict[str, torch.Tensor]:
    """A base in two shards; its weights."""
    weights = {f"{LINEAR}.weight": torch.rand(4, 6).bfloat16(), EMBEDDINGS: torch.rand(9, 6).bfloat16()}
    folder.mkdir()
    for number, (name, weight) in enumerate(weights.items()):
        save_file({name: weight, f"other.{number}": torch.ones(2)}, folder / f"model-{number}.safetensors")
    (folder / "config.json").write_text("{}")
    return weights


def lora(linear: str = LINEAR, shape: tuple[int, int] = (4, 6)) -> dict[str, torch.Tensor]:
    return {f"{linear}.lora_A.weight": torch.rand(2, shape[1]), f"{linear}.lora_B.weight": torch.rand(shape[0], 2)}


def rows(count: int, width: int) -> dict[str, torch.Tensor]:
    return {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.rand(count, width)}


def test_linears_are_added_to_and_rows_are_put_in_place(tmp_path: Path) -> None:
    weights = write_base(tmp_path / "base")
    change = {**lora(), **rows(2, 6)}
    adapter = write_adapter(tmp_path / "adapter", change, trainable_token_indices=[7, 1])
    folder = merge_adapter(tmp_path / "base", adapter, tmp_path / "merged")
    merged = load_file(folder / "model-0.safetensors") | load_file(folder / "model-1.safetensors")
    a, b = (change[f"{LINEAR}.lora_{side}.weight"] for side in "AB")
    assert torch.equal(merged[f"{LINEAR}.weight"], (weights[f"{LINEAR}.weight"].float() + b @ a * 1.5).bfloat16())
    (new,) = rows_of(change)
    assert torch.equal(merged[EMBEDDINGS][[7, 1]], new.bfloat16())
    others = [0, 2, 3, 4, 5, 6, 8]
    assert torch.equal(merged[EMBEDDINGS][others], weights[EMBEDDINGS][others])
    assert (folder / "config.json").read_text() == "{}"


def rows_of(change: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for name, tensor in change.items() if "trainable_tokens" in name]


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (lora("model.layers.1.self_attn.q_proj"), {}, r"layers\.1.*is not in"),
        ({f"{LINEAR}.lora_magnitude_vector": torch.ones(4)}, {}, "lora_magnitude_vector cannot be merged"),
        ({f"{LINEAR}.lora_A.weight": torch.ones(2, 6)}, {}, "lora_A.weight cannot be merged"),
        (lora(), {"use_rslora": True}, "use_rslora cannot be merged"),
        (lora(), {"peft_type": "LOHA"}, "LOHA cannot be merged"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", tensors, **config)
    with pytest.raises(AdapterRefused, match=message):
        merge_adapter(tmp_path / "base", adapter, tmp_path / "merged")


@pytest.mark.parametrize("tied", [True, False])
def test_peft_merges_to_the_same(tmp_path: Path, tied: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft comes with the extra `train`")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied)
    )
    model.save_pretrained(tmp_path / "base")
    ids = [13, 5] if tied else {"embed_tokens": [13, 5], "lm_head": [13]}
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", trainable_token_indices=ids)
    adapted = peft.get_peft_model(model, config)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight)
    adapted.save_pretrained(tmp_path / "adapter")
    theirs = adapted.merge_and_unload().state_dict()
    ours = load_file(merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    assert set(ours) == set(theirs) - ({"lm_head.weight"} if tied else set())
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name])
        assert (weight == theirs[name]).float().mean() > 0.99, name


def test_the_base_for_training_differs_in_one_token(base_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    before, after = (
        load_file(folder / "model.safetensors") for folder in (base_model, prepare_base(base_model, tmp_path))
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {EMBEDDINGS}
    different = (before[EMBEDDINGS] != after[EMBEDDINGS]).any(dim=1).nonzero().flatten().tolist()
    assert different == [CALL_ID]
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (base_model, tmp_path))
    like = [old.convert_tokens_to_ids(text) for text in (">>>", "Ġcall")]
    wanted = 0.6 * before[EMBEDDINGS][like].float().sum(dim=0)
    torch.testing.assert_close(after[EMBEDDINGS][CALL_ID].float(), wanted, rtol=0.01, atol=0.001)
    assert new.get_vocab() == {CALL_TOKEN if text == UNTRAINED else text: i for text, i in old.get_vocab().items()}
    assert new.added_tokens_decoder[CALL_ID].special
    assert new.decode([CALL_ID]) == CALL_TOKEN
    assert new.chat_template == old.chat_template
    assert detect_format(new) == "functionary-smol"


def test_the_built_in_model_is_base_and_adapter(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    change = {**lora(shape=(576, 576)), **rows(1, 576)}
    monkeypatch.setattr(builtin, "ADAPTER", write_adapter(tmp_path / "adapter", change, trainable_token_indices=[13]))
    monkeypatch.setattr(builtin, "ensure_base", lambda report: base_model)
    monkeypatch.setenv("FUNCTIONARY_VLLM_CACHE", str(tmp_path / "cache"))
    folder = builtin.ensure_builtin()
    assert folder == tmp_path / "cache" / "functionary-smol"
    assert {path.name for path in folder.parent.iterdir() if path.is_dir()} == {"functionary-smol"}
    merged = load_file(folder / "model.safetensors")
    assert torch.equal(merged[EMBEDDINGS][CALL_ID], rows_of(change)[0][0].bfloat16())
    assert detect_format(AutoTokenizer.from_pretrained(folder)) == "functionary-smol"
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0
    assert cache.find_damage(folder, builtin.builtin_stamp()) is None
    write_adapter(tmp_path / "adapter", change, trainable_token_indices=[12])
    assert cache.find_damage(folder, builtin.builtin_stamp()) == "it was built from something else"


def test_the_adapter_is_small_and_the_model_is_served_in_its_own_format(builtin_model: Path) -> None:
    from transformers import AutoTokenizer

    assert sum(path.stat().st_size for path in builtin.ADAPTER.iterdir()) <= 20e6
    assert (builtin.ADAPTER / "README.md").read_text().strip()
    assert detect_format(AutoTokenizer.from_pretrained(builtin_model)) == builtin.BUILTIN_FORMAT == "functionary-smol"
    assert cache.find_damage(builtin_model, builtin.builtin_stamp()) is None
