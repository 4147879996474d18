"""Training in miniature: what is learned of a line, rows against examples one by one, and a run from end to end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from functionary_vllm.events import CallArguments, CallStart, Text, merge
from functionary_vllm.formats import get_format
from functionary_vllm.training.dataset.examples import BrokenLine, Encoder, Example, read_examples

pytest.importorskip("peft")

from functionary_vllm.training.attention import NAME as TREE
from functionary_vllm.training.merge import merge as merge_folders
from functionary_vllm.training.model import CannotTrain, latest_checkpoint, load_model
from functionary_vllm.training.packing import Collator, groups, pack
from functionary_vllm.training.record import read_metrics
from functionary_vllm.training.run import train
from functionary_vllm.training.scores import Scores
from functionary_vllm.training.settings import PRESETS, Settings, parser, read_settings
from functionary_vllm.training.trainer import PackedTrainer

ROOT = Path(__file__).resolve().parents[1]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a day.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "integer"}}},
    },
}


def call(number: int, city: str) -> dict[str, Any]:
    arguments = json.dumps({"city": city, "day": number})
    return {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def line(city: str = "Bern", **more: Any) -> dict[str, Any]:
    """Two calls, their results, what they mean; thanks, and the answer to that."""
    messages = [
        {"role": "user", "content": f"How is {city}, today and tomorrow?"},
        {"role": "assistant", "content": None, "tool_calls": [call(1, city)]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "blue"}'},
        {"role": "assistant", "content": f"{city} has a blue sky."},
        {"role": "user", "content": "Thanks!"},
        {"role": "assistant", "content": "You are welcome."},
    ]
    return {"messages": messages, "tools": [WEATHER], "kind": "result", **more}


# --- Examples ----------------------------------------------------------------------------------------------------

# A format, a tokenizer of its models, and which answers are learned in one sequence.
FORMATS = {
    "functionary-smol": ("functionary_smol_tokenizer", [3]),
    "functionary-v0": ("spm_v0_tokenizer", [1, 1, 1]),
    "functionary-v1": ("spm_v1_tokenizer", [3]),
    "functionary-v2": ("spm_v2_tokenizer", [3]),
    "functionary-v3.2": ("llama31_tokenizer", [3]),
    "hermes": ("qwen25_tokenizer", [3]),
    "mistral-v3": ("mistral_v3_tokenizer", [1, 1, 1]),
    "qwen3-xml": ("qwen35_tokenizer", [2, 1]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_learned_is_what_the_assistant_wrote(name: str, request: pytest.FixtureRequest) -> None:
    """Read as a model's answer, each span gives the turn again. Thoughts that a prompt opens are closed there."""
    tokenizer, together = FORMATS[name]
    fmt = get_format(name, request.getfixturevalue(tokenizer))
    examples = Encoder(fmt).encode(line())
    assert [len(example.turns) for example in examples] == together
    assert [example.kind for example in examples][-1] == "result"
    read = []
    for ids, begin, end in [(example.ids, *turn) for example in examples for turn in example.turns]:
        assert int(ids[end - 1]) in fmt.stop_token_ids
        before = fmt.tokenizer.decode(ids[:begin])  # type: ignore[union-attr]
        assert before.count("<think>") == before.count("</think>")
        decoder = fmt.decoder([WEATHER])
        events = merge([*decoder.feed(ids[begin:end].tolist()), *decoder.finish()])
        read.append([(type(e), getattr(e, "name", None) or getattr(e, "text", "")) for e in events])
    arguments = '{"city": "Bern", "day": 1}'
    said = [[pair for pair in turn if pair[0] in (Text, CallStart, CallArguments)] for turn in read]
    assert said[0] == [(CallStart, "get_weather"), (CallArguments, arguments)]
    assert [[(kind, text.strip()) for kind, text in turn] for turn in said[1:]] == [
        [(Text, "Bern has a blue sky.")],
        [(Text, "You are welcome.")],
    ]


def test_several_calls_and_text_before_them(functionary_smol_tokenizer: Any) -> None:
    turn = {"role": "assistant", "content": "Both days.", "tool_calls": [call(1, "Rome"), call(2, "Rome")]}
    (example,) = Encoder(get_format("functionary-smol", functionary_smol_tokenizer)).encode(
        line(messages=[{"role": "user", "content": "Rome?"}, turn])
    )
    ((begin, end),) = example.turns
    assert functionary_smol_tokenizer.decode(example.ids[begin:end]) == (
        'Both days.\n<|function_call|>get_weather\n{"city": "Rome", "day": 1}\n'
        '<|function_call|>get_weather\n{"city": "Rome", "day": 2}<|im_end|>'
    )
    assert end == len(example.ids)


def test_a_format_that_writes_its_history_otherwise(request: pytest.FixtureRequest) -> None:
    """v1 writes several calls of one answer apart later on: then each answer is an example of its own."""
    fmt = get_format("functionary-v1", request.getfixturevalue("spm_v1_tokenizer"))
    conversation = line()
    conversation["messages"][1]["tool_calls"] = [call(1, "Bern"), call(2, "Bern")]
    conversation["messages"].insert(3, {"role": "tool", "tool_call_id": "call_2", "content": "grey"})
    examples = Encoder(fmt).encode(conversation)
    assert [len(example.turns) for example in examples] == [1, 2]
    assert [example.kind for example in examples] == ["", "result"]


def test_a_turn_of_weight_zero_is_read_and_not_learned(functionary_smol_tokenizer: Any) -> None:
    encoder = Encoder(get_format("functionary-smol", functionary_smol_tokenizer))
    weighted = line()
    weighted["messages"][1]["weight"] = 0
    (whole,), (without,) = encoder.encode(line()), encoder.encode(weighted)
    assert without.turns == whole.turns[1:]
    assert (without.ids == whole.ids).all()


BROKEN = {
    '{"messages": [': "no JSON",
    "[1]": "expected an object",
    json.dumps({"messages": [{"role": "user", "content": "Hi"}]}): "no assistant message",
    json.dumps({"messages": [{"role": "assistant", "content": ""}]}): "neither content nor calls",
    json.dumps({"messages": [{"role": "robot", "content": "Hi"}]}): "messages[0]",
    json.dumps(line(tools=[WEATHER, WEATHER])): "another function named 'get_weather'",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_named(broken: str, functionary_smol_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(line())}\n\n{broken}\n")
    with pytest.raises(BrokenLine) as caught:
        read_examples(path, get_format("functionary-smol", functionary_smol_tokenizer), 1000)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert BROKEN[broken] in str(caught.value)


def test_a_long_conversation_is_left_out_and_counted(functionary_smol_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (line(), line("Bern " * 50), line("Rome"))))
    fmt = get_format("functionary-smol", functionary_smol_tokenizer)
    length = len(Encoder(fmt).encode(line())[0].ids)
    found = read_examples(path, fmt, length)
    assert (len(found.examples), found.too_long) == (2, 1)
    assert all(len(example.ids) == length for example in found.examples)


# --- Rows --------------------------------------------------------------------------------------------------------


@st.composite
def neighbours(draw: st.DrawFn) -> list[Example]:
    """Examples of which some share a beginning, with one or two learned spans each."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        beginning = draw(st.lists(st.integers(0, 60), min_size=0, max_size=20))
        for _ in range(draw(st.integers(1, 4))):
            ids = [*beginning, *draw(st.lists(st.integers(0, 60), min_size=3, max_size=9))]
            first = draw(st.integers(1, len(ids) - 2))
            turns = ((first, first + 1), (first + 1, len(ids)))
            made.append(Example(numpy.array(ids, numpy.int32), turns[draw(st.integers(0, 1)) :], "call"))
    return made


def tiny_llama(**config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "initializer_range": 0.3, **config})).eval()


def losses(model: Any, batch: dict[str, Any]) -> list[float]:
    passed = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "tree") if name in batch}
    with torch.no_grad():
        logits = model(**passed, logits_to_keep=batch["logits_to_keep"]).logits[0]
    return torch.nn.functional.cross_entropy(logits, batch["targets"], reduction="none").tolist()


@settings(max_examples=40, deadline=None)
@given(neighbours(), st.integers(10, 80), st.booleans())
def test_a_row_says_what_its_examples_say_one_by_one(examples: list[Example], budget: int, mask: bool) -> None:
    rows = pack(examples, budget)
    packed = [example for row in rows for group in row.groups for example in group.members]
    assert sorted(map(id, packed)) == sorted(map(id, examples))
    model = tiny_llama()
    for row in rows:
        assert row.size <= budget or len(row.groups) == len(row.groups[0].members) == 1
        model.set_attn_implementation("sdpa" if mask else TREE)
        together = Collator(first_weight=3.0, mask=mask, spans=True)([row])
        assert together["input_ids"].shape == (1, row.size)
        found = losses(model, together)
        model.set_attn_implementation("eager")
        alone = []
        for example in (example for group in row.groups for example in group.members):
            ids = torch.from_numpy(example.ids.astype(numpy.int64))
            with torch.no_grad():
                logits = model(ids[None]).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            alone += [float(nll[place - 1]) for begin, end in example.turns for place in range(begin, end)]
        assert found == pytest.approx(alone, abs=1e-4)
        firsts = [begin for begin, _, _ in together["spans"]]
        assert together["weights"].tolist() == [3.0 if place in firsts else 1.0 for place in range(len(found))]


@pytest.mark.parametrize(
    ("answer", "weights"),
    [([7, 1, 2], [3, 1, 1]), ([4, 5, 6], [0.25] * 3), ([4, 5, 7, 1, 7], [3, 0.25, 1, 1, 1])],
)
def test_text_counts_less_than_calls(answer: list[int], weights: list[float]) -> None:
    example = Example(numpy.array([0, *answer], numpy.int32), ((1, len(answer) + 1),))
    batch = Collator(first_weight=3.0, text_weight=0.25, decline_weight=9.0, call_token=7)(pack([example], 100))
    assert batch["weights"].tolist() == weights
    assert batch["declines"].tolist() == [0 if 7 in answer else 9] + [0] * (len(answer) - 1)


def test_neighbours_are_grouped_where_most_is_saved() -> None:
    def example(*ids: int) -> Example:
        return Example(numpy.array(ids, numpy.int32), ((len(ids) - 1, len(ids)),))

    head, tools, others = range(100, 110), range(20), range(30, 50)
    first = [example(*head, *tools, n, 1) for n in (60, 61)]
    second = [example(*head, *others, n, 1) for n in (60, 61, 62)]
    found = groups([*first, *second], 1000)
    assert [(group.shared, len(group.members)) for group in found] == [(30, 2), (30, 3)]
    assert sorted(len(group.members) for group in groups([*first, *second], 34)) == [1, 2, 2]


def test_scores_count_answers_by_kind() -> None:
    scores = Scores(first_token=7)
    inputs = {"targets": torch.tensor([7, 1, 2, 5, 6]), "spans": ((0, 3, "call"), (3, 5, "decline"))}
    scores.add(torch.full((5,), 0.5), torch.tensor([7, 1, 3, 4, 6]), inputs)
    shares = scores.shares()
    assert (shares["call_decided"], shares["call_exact"]) == (1, 0)
    assert (shares["decline_decided"], shares["decline_exact"]) == (1, 0)  # another first word, yet no call
    assert shares["all_nll"] == 0.5


# --- A run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, functionary_smol_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("base")
    heads = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # of a size that vLLM knows
    tiny_llama(vocab_size=49152, bos_token_id=1, eos_token_id=2, **heads).save_pretrained(folder)
    functionary_smol_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    cities = [
        f"{first}{last}" for first in ("Bre", "Ha", "Lin", "Wal") for last in ("men", "gen", "stadt", "dorf", "au")
    ]
    path.write_text("".join(json.dumps(line(city)) + "\n" for city in cities))
    return path


@pytest.fixture(scope="module")
def recipe(base: Path, data: Path) -> Settings:
    """Ten steps in full precision; rows are small, so that there are several a step."""
    small = Settings(
        base=base, data=(data,), output=Path(), row_tokens=260, steps=10, precision="fp32", **PRESETS["small"]
    )
    return replace(small, learning_rate=1e-2, log_every=1, save_every=5, held_out=data, evaluate_every=5)


@pytest.fixture(scope="module")
def trained(recipe: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(replace(recipe, output=output))
    return output


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Relative to all that there is: Adam makes steps of one size out of gradients that are nothing but rounding."""
    mine, theirs = (torch.cat([values[name].flatten() for name in sorted(values)]) for values in (one, other))
    return float((mine - theirs).norm() / mine.norm())


def equal(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=tolerance) for k in one)


def test_a_run_learns_and_tells(trained: Path) -> None:
    lines = read_metrics(trained)
    steps = [each for each in lines if "loss" in each]
    assert [each["step"] for each in steps] == list(range(1, 11))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(math.isfinite(each["grad_norm"]) for each in steps)
    assert [each["lr"] for each in steps[-3:]] == sorted((each["lr"] for each in steps[-3:]), reverse=True)
    tokens = [each["tokens"] for each in steps]
    assert tokens == sorted(set(tokens))
    evaluated = [each for each in lines if "eval_result_exact" in each]
    assert [each["step"] for each in evaluated] == [5, 10, 10]
    assert evaluated[-1]["eval_all_nll"] < evaluated[0]["eval_all_nll"]
    assert (trained / "loss.png").stat().st_size > 1000
    assert sorted(path.name for path in (trained / "adapters").iterdir()) == ["step-10", "step-5"]


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(recipe: Settings, trained: Path, tmp_path: Path) -> None:
    again = replace(recipe, output=tmp_path)
    # The cut comes from outside: a run told to make ten steps, and stopped by its clock after the first.
    train(replace(again, max_minutes=1e-9))
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-1"
    train(replace(again, resume="last"))
    assert equal(tensors(tmp_path / "final"), tensors(trained / "final"), 0.0)
    whole, cut = (
        [{k: v for k, v in each.items() if not k.endswith("_s")} for each in read_metrics(folder) if "loss" in each]
        for folder in (trained, tmp_path)
    )
    assert cut == whole


def test_the_decay_by_itself(recipe: Settings, trained: Path, tmp_path: Path) -> None:
    train(replace(recipe, output=tmp_path, resume=str(trained / "checkpoint-5"), decay_only=3, held_out=None))
    rates = [each["lr"] for each in read_metrics(tmp_path) if "loss" in each]
    assert rates == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3])


def test_a_run_begins_with_an_adapter(recipe: Settings, trained: Path, tmp_path: Path) -> None:
    train(replace(recipe, output=tmp_path, adapter=trained / "final", steps=1, held_out=None, learning_rate=0.0))
    assert equal(tensors(tmp_path / "final"), tensors(trained / "final"), 0.0)


def test_two_processes_learn_what_one_does(recipe: Settings, trained: Path, tmp_path: Path) -> None:
    options = {"base": recipe.base, "data": recipe.data[0], "output": tmp_path, "row-tokens": 260, "steps": 3}
    options |= {"precision": "fp32", "learning-rate": 1e-2, "preset": "small", "processes": 2, "save-every": 3}
    options |= {"schedule": "constant", "log-every": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "functionary_vllm.cli", "train", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one = tmp_path / "one"
    train(replace(recipe, output=one, steps=3, schedule="constant", held_out=None))
    assert distance(tensors(tmp_path / "final"), tensors(one / "final")) < 1e-3
    lines = [[each for each in read_metrics(folder) if "loss" in each] for folder in (tmp_path, one)]
    assert [each["loss"] for each in lines[0]] == pytest.approx([each["loss"] for each in lines[1]], rel=1e-4)
    assert [each["tokens"] for each in lines[0]] == [each["tokens"] for each in lines[1]]


def greedy(model: Any, ids: Sequence[int]) -> list[int]:
    prompt = torch.tensor([list(ids)])
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12)
    return list(found[0, prompt.shape[1] :].tolist())


def test_the_merged_folder_says_what_the_adapter_says(
    recipe: Settings, trained: Path, functionary_smol_tokenizer: Any, tmp_path: Path
) -> None:
    """The trained row counts where tokens are read and where they are written; peft merges to the same weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = merge_folders(recipe.base, trained / "final", tmp_path / "merged")
    assert set(json.loads((folder / "merged.json").read_text())) == {"base", "adapter", "merged"}
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(recipe.base, dtype=torch.float32)
    row = merged.get_input_embeddings().weight[13]
    assert not torch.equal(row, plain.get_input_embeddings().weight[13])
    assert torch.equal(row, merged.get_output_embeddings().weight[13])
    adapted = PeftModel.from_pretrained(plain, trained / "final").eval()
    (example,) = Encoder(get_format("functionary-smol", functionary_smol_tokenizer)).encode(line("Ulm"))
    ids = example.ids[: example.turns[0][0] + 1].tolist()
    assert 13 in ids
    with torch.no_grad():
        both = [model(torch.tensor([ids])).logits for model in (merged, adapted)]
    assert torch.allclose(*both, atol=1e-3)
    assert greedy(merged, ids) == greedy(adapted, ids)
    theirs = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(value, theirs[name], atol=1e-6) for name, value in merged.state_dict().items())


@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_says_what_transformers_says(recipe: Settings, trained: Path, data: Path, tmp_path: Path) -> None:
    folder = merge_folders(recipe.base, trained / "final", tmp_path / "merged")
    options = ["--n", "3", "--max-tokens", "8", "--output", str(tmp_path / "told.json")]
    command = [sys.executable, "-m", "functionary_vllm.evaluation.equality", str(folder), str(data), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["n"], told["tokens"] > 0) == (3, True)
    assert told["largest gap"] < 1e-3  # a tie may be broken either way


def test_the_cheaper_way_to_train_a_row_is_pefts(recipe: Settings, functionary_smol_tokenizer: Any) -> None:
    """Losses and gradients are those of peft's own layer, which copies all embeddings."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    (example,) = Encoder(get_format("functionary-smol", functionary_smol_tokenizer)).encode(line())
    batch = Collator()([pack([example], 1000)[0]])
    found = []
    for ours in (True, False):
        torch.manual_seed(1)
        model = load_model(recipe, functionary_smol_tokenizer)
        for module in model.modules():
            if isinstance(module, TrainableTokensLayer) and not ours:
                del module.forward_adapters  # the instance's, over the class's own
        output = model(input_ids=batch["input_ids"], logits_to_keep=batch["logits_to_keep"], tree=batch["tree"])
        loss = torch.nn.functional.cross_entropy(output.logits[0], batch["targets"])
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad} | {"loss": loss})
    assert equal(*found, 1e-5)
    assert any("trainable_tokens" in name and grad.abs().max() > 0 for name, grad in found[0].items())


def test_the_loss_of_a_step(recipe: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a run's own trainer makes of a row, against the formula: a call, and an answer that must not be one."""

    class Made(Exception):
        pass

    def stop(trainer: PackedTrainer, **_: Any) -> None:
        raise Made(trainer)

    monkeypatch.setattr(PackedTrainer, "train", stop)
    with pytest.raises(Made) as made:
        train(replace(recipe, output=tmp_path, held_out=None))
    trainer = made.value.args[0]
    (row,) = pack(Encoder(get_format("functionary-smol", trainer.processing_class)).encode(line()), 1000)
    batch = trainer.data_collator([row])
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=1)
    with torch.no_grad():
        log_p = torch.log_softmax(trainer._nll(trainer.model, batch)[0], -1)
    call = trainer._first_token
    expected = 0.0
    for begin, end in row.groups[0].members[0].turns:
        answer = row.groups[0].members[0].ids[begin:end].tolist()
        for i, token in enumerate(answer):
            at, log_p = log_p[0], log_p[1:]
            expected -= float(at[token]) * (0.25 if call not in answer else 3 if i == 0 else 1)
            if i == 0 and call not in answer:
                expected -= 9 * math.log(1 - math.exp(float(at[call])))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_all_weights(recipe: Settings, tmp_path: Path) -> None:
    """Full fine-tuning leaves an ordinary model, its embeddings still tied."""
    from transformers import AutoModelForCausalLM

    whole = replace(recipe, output=tmp_path, lora_rank=0, train_tokens=(), steps=2, held_out=None, schedule="cosine")
    train(replace(whole, gradient_checkpointing=True))
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (recipe.base, tmp_path / "final"))
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(changed)
    assert after.get_input_embeddings().weight is after.get_output_embeddings().weight


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train_tokens": ("<|nothing|>",)}, "no token '<|nothing|>'"),
        ({"resume": "last"}, "no checkpoint"),
        ({"decay_only": 5}, "say --resume"),
        ({"format": "klingon"}, "no format 'klingon'"),
        ({"max_length": 20}, "nothing to learn"),
        ({"format": "functionary-v0", "text_weight": 0.5}, "no token tells a call"),
    ],
)
def test_what_cannot_be_trained_is_said(recipe: Settings, change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match=reason.replace("|", r"\|")):
        train(replace(recipe, output=tmp_path, **change))


def test_flags_stand_before_a_preset_and_a_preset_before_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "a", "b", "--output", "run", "--preset", "7b", "--epochs", "1", "--resume", "--processes", "8"]
    found, processes = read_settings(words, lambda output: output / "base")
    assert (found.base, found.data, processes) == (Path("run/base"), (Path("a"), Path("b")), 8)
    assert (found.epochs, found.learning_rate, found.log_every, found.resume) == (1.0, 2e-5, 10, "last")
    for preset in PRESETS:
        read_settings([*words[:5], "--preset", preset], lambda output: output)
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    assert "--rows-per-step" in capsys.readouterr().out
