"""LoRA adapters: what a folder must hold, who keeps which, the routes; then, marked `engine`, vLLM's own."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from functionary_vllm.api.keys import digest_of
from functionary_vllm.engine.adapter_folder import check_adapter
from functionary_vllm.engine.adapters import LoadedAdapters
from functionary_vllm.engine.base import Engine, Generation, Sampling, Step
from functionary_vllm.engine.startup import start_vllm
from functionary_vllm.errors import EngineUnavailable, InvalidRequest, ModelNotFound
from functionary_vllm.settings import SettingsError, read_settings
from tests.apps import MODEL, PATH, USER, app_of, client_of, engine_saying, error_of, events_of
from tests.fakes import HANG, FakeEngine, collect

LAYER = "model.layers.{}.self_attn.q_proj"
ROWS, COLUMNS = 6, 4


def write_base(folder: Path, layers: int = 2) -> Path:
    folder.mkdir()
    weights = {f"{LAYER.format(i)}.weight": np.zeros((ROWS, COLUMNS), np.float32) for i in range(layers)}
    packed = {"model.layers.0.mlp.up_proj.qweight": np.zeros((1, 1), np.int32)}
    save_file(weights | packed, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, modules: dict[str, tuple[int, int, int]] | None = None, **config: Any) -> str:
    """`modules`: rows, columns and rank of each."""
    folder.mkdir()
    modules = modules or {LAYER.format(0): (ROWS, COLUMNS, 2)}
    weights: dict[str, Any] = {}
    for name, (rows, columns, rank) in modules.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = np.zeros((rank, columns), np.float32)
        weights[f"base_model.model.{name}.lora_B.weight"] = np.zeros((rows, rank), np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    own = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(own))
    return str(folder)


# ------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize(
    "modules",
    [
        None,
        {LAYER.format(0): (ROWS, COLUMNS, 2), LAYER.format(1): (ROWS, COLUMNS, 2)},
        {"model.layers.0.mlp.up_proj": (99, 99, 2)},  # packed in the base: its shape says nothing
        {"model.layers.0.block_sparse_moe.experts.gate": (1, 1, 7)},
        {"transformer.h.7.attn": (9, 9, 2)},  # the base has other names for all
    ],
)
def test_folders_that_fit(tmp_path: Path, modules: Any) -> None:
    check_adapter(write_adapter(tmp_path / "a", modules), 8, write_base(tmp_path / "base"))


@pytest.mark.parametrize(
    ("modules", "config", "reason"),
    [
        (None, {"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        (None, {"r": "2"}, "must be whole numbers above 0"),
        (None, {"r": 0}, "must be whole numbers above 0"),
        (None, {"lora_alpha": None}, "lora_alpha must be a number"),
        (None, {"target_modules": None}, "target_modules"),
        (None, {"r": 16}, "its rank is 16, and there is room for 8"),
        (None, {"rank_pattern": {"q_proj": 9}}, "its rank is 9"),
        ({LAYER.format(0): (ROWS, COLUMNS, 4)}, {}, "is of rank 4 and 4, its config says 2"),
        ({LAYER.format(0): (ROWS, 2 * COLUMNS, 2)}, {}, "is 6 x 8, and 6 x 4 in the base"),
        ({LAYER.format(0): (1, COLUMNS, 2)}, {}, "is 1 x 4, and 6 x 4 in the base"),
        ({LAYER.format(2): (ROWS, COLUMNS, 2)}, {}, "has no model.layers.2.self_attn.q_proj"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, modules: Any, config: dict[str, Any], reason: str) -> None:
    path = write_adapter(tmp_path / "a", modules, **config)
    with pytest.raises(InvalidRequest) as caught:
        check_adapter(path, 8, write_base(tmp_path / "base"))
    assert reason in caught.value.message
    assert caught.value.param == "lora_path"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("adapter_config.json", None, "there is no adapter_config.json"),
        ("adapter_config.json", b"{", "cannot be read"),
        ("adapter_config.json", b"\xff", "cannot be read"),
        ("adapter_config.json", b"[]", "is no JSON object"),
        ("adapter_model.safetensors", None, "there is no adapter_model.safetensors"),
        ("adapter_model.safetensors", b"", "cannot be read"),
        ("adapter_model.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "has no LoRA weights"),
        ("adapter_model.safetensors", b"\xff" * 64, "cannot be read"),
    ],
)
def test_files_that_are_broken(tmp_path: Path, file: str, content: bytes | None, reason: str) -> None:
    path = write_adapter(tmp_path / "a")
    (tmp_path / "a" / file).unlink()
    if content is not None:
        (tmp_path / "a" / file).write_bytes(content)
    with pytest.raises(InvalidRequest, match=reason):
        check_adapter(path)
    with pytest.raises(InvalidRequest, match="is no folder on the server"):
        check_adapter(path + "/nowhere")


# ------------------------------------------------------------------------------------------ who keeps which one


class Shelf:
    """A Loader: what it holds is by number, what it hands out says which load it is."""

    def __init__(self, room: int = 3) -> None:
        self.room = room
        self.held: dict[int, str] = {}
        self.broken: set[str] = set()
        self.refusal: Exception = InvalidRequest("No good.")

    async def load(self, label: str, number: int, path: str) -> str:
        await asyncio.sleep(0)
        if path in self.broken:
            raise self.refusal
        self.held[number] = path
        return f"{number} {label} {path}"

    async def unload(self, number: int) -> None:
        await asyncio.sleep(0)
        del self.held[number]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_keeps_the_adapter_that_it_began_with() -> None:
    shelf = Shelf()
    adapters = LoadedAdapters(shelf)
    await adapters.load("a", "/1")
    with adapters.use("a") as first, adapters.use("a") as second, adapters.use(None) as nothing:
        assert (first, second, nothing) == ("1 a /1", "1 a /1", None)
        await adapters.load("a", "/2", replace=True)
        with adapters.use("a") as third:
            assert third == "2 a#2 /2"  # another in the engine's eyes, whose caches know adapters by label
            await adapters.unload("a")
            assert adapters.find("a") is None
            assert adapters.all() == []
            with pytest.raises(ModelNotFound), adapters.use("a"):
                pass
            await settled()
            assert shelf.held == {1: "/1", 2: "/2"}
        await settled()
        assert shelf.held == {1: "/1"}
    await settled()
    assert shelf.held == {}
    with pytest.raises(ModelNotFound):
        await adapters.unload("a")


async def test_there_is_room_for_so_many_and_one_that_is_in_use_takes_some() -> None:
    adapters = LoadedAdapters(Shelf(2))
    await adapters.load("a", "/1")
    await adapters.load("b", "/2")
    with pytest.raises(InvalidRequest, match="room for: 2"):
        await adapters.load("c", "/3")
    with adapters.use("b"):
        await adapters.unload("b")
        with pytest.raises(InvalidRequest, match="1 of which wait"):
            await adapters.load("c", "/3")
    await adapters.load("c", "/3")
    assert [adapter.name for adapter in adapters.all()] == ["a", "c"]
    with pytest.raises(InvalidRequest, match="--enable-lora"):
        await LoadedAdapters(Shelf(0)).load("a", "/1")


async def test_one_that_cannot_be_loaded_changes_nothing() -> None:
    shelf = Shelf()
    adapters = LoadedAdapters(shelf)
    await adapters.load("a", "/1")
    shelf.broken = {"/2"}
    with pytest.raises(InvalidRequest, match="No good"):
        await adapters.load("a", "/2", replace=True)
    with pytest.raises(InvalidRequest, match="already been loaded"):
        await adapters.load("a", "/3")
    with adapters.use("a") as handle:
        assert handle == "1 a /1"
    # Two at once: the second finds the name taken.
    loads = await asyncio.gather(adapters.load("b", "/4"), adapters.load("b", "/5"), return_exceptions=True)
    assert [type(result) for result in loads] == [type(None), InvalidRequest]


async def test_an_engine_that_is_started_again_gets_them_again() -> None:
    shelf = Shelf()
    adapters = LoadedAdapters(shelf)
    for name in ("a", "b", "c"):
        await adapters.load(name, f"/{name}")
    with adapters.use("c"):
        await adapters.unload("c")
        shelf.held = {}
        shelf.broken = {"/b"}
        await adapters.again()
        shelf.held[3] = "/c"  # what a late word of it may be about
    assert [adapter.name for adapter in adapters.all()] == ["a"]
    assert shelf.held[1] == "/a"
    shelf.refusal = EngineUnavailable("Gone.")
    shelf.broken = {"/a"}
    with pytest.raises(EngineUnavailable):
        await adapters.again()
    assert adapters.find("a") is not None


@pytest.mark.filterwarnings("ignore")
async def test_what_vllm_could_not_load_is_taken_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed: only the replay engine can be tested")
    from functionary_vllm.engine.vllm_adapters import VllmLoader

    calls: list[Any] = []

    async def add_lora(request: Any) -> None:
        calls.append(request)
        raise Exception("Call to add_lora method failed: half of it")

    async def remove_lora(number: int) -> None:
        calls.append(number)

    llm: Any = SimpleNamespace(
        vllm_config=SimpleNamespace(lora_config=SimpleNamespace(max_cpu_loras=2, max_lora_rank=8)),
        model_config=SimpleNamespace(model=str(write_base(tmp_path / "base")), revision=None),
        _run_output_handler=lambda: None,
        add_lora=add_lora,
        remove_lora=remove_lora,
    )
    loader = VllmLoader(lambda: llm)
    path = write_adapter(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match=r"^The adapter cannot be loaded: half of it$"):
        await loader.load("a", 7, "a")
    assert [(calls[0].lora_name, calls[0].lora_int_id, calls[0].lora_path), calls[1]] == [("a", 7, path), 7]
    with pytest.raises(InvalidRequest, match="DoRA"):
        await loader.load("b", 8, write_adapter(tmp_path / "b", use_dora=True))
    assert len(calls) == 2


# -------------------------------------------------------------------------------------------------- over HTTP


class Folders:
    """A Loader that reads the folder, as the replay engine's does."""

    room = 8

    async def load(self, label: str, number: int, path: str) -> None:
        await asyncio.to_thread(check_adapter, path)

    async def unload(self, number: int) -> None:
        pass


class LoraEngine(FakeEngine):
    """`began`: a request has its adapter."""

    def __init__(self, *scripts: Any, tokenizer: Any) -> None:
        super().__init__(*scripts, tokenizer=tokenizer)
        self.adapters: LoadedAdapters = LoadedAdapters(Folders())
        self.began = asyncio.Event()

    async def generate(self, request: Generation, take: Any) -> None:
        with self.adapters.use(request.model):
            self.began.set()
            await super().generate(request, take)


def lora_engine(text: str = "Hi") -> LoraEngine:
    made = engine_saying(text)
    return LoraEngine(*made.scripts, tokenizer=made.tokenizer)


@asynccontextmanager
async def as_admin(engine: FakeEngine, folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    keys = folder / "keys.yaml"
    keys.write_text(f"keys:\n- {{name: root, sha256: {digest_of(b'root').hex()}, admin: true}}\n")
    settings = {"keys_file": str(keys), "allow_runtime_lora_updating": True, **settings}
    async with client_of(engine, **settings) as client:
        client.headers["authorization"] = "Bearer root"
        yield client


async def load(client: httpx.AsyncClient, name: str, path: str, **more: Any) -> httpx.Response:
    return await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **more})


async def unload(client: httpx.AsyncClient, name: str) -> httpx.Response:
    return await client.post("/v1/unload_lora_adapter", json={"lora_name": name})


async def chat(client: httpx.AsyncClient, model: str | None, **body: Any) -> httpx.Response:
    return await client.post(PATH, json={"model": model, "messages": USER, **body})


async def test_an_adapter_is_a_model(tmp_path: Path) -> None:
    engine = lora_engine()
    path = write_adapter(tmp_path / "a")
    async with as_admin(engine, tmp_path) as client:
        loaded = await load(client, "team/a", path)
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'team/a' added successfully.")
        data = (await client.get("/v1/models")).json()["data"]
        assert [(model["id"], model.get("parent")) for model in data] == [
            (MODEL, None),
            ("alias", None),
            ("team/a", MODEL),
        ]
        assert (await client.get("/v1/models/team/a")).json() == data[2]
        answers = [await chat(client, name) for name in ("team/a", "alias", None)]
        assert [answer.json()["model"] for answer in answers] == ["team/a", "alias", MODEL]
        assert [request.model for request in engine.requests] == ["team/a", None, None]
        assert len({tuple(request.prompt_ids) for request in engine.requests}) == 1  # the base's format
        assert (await client.post("/tokenize", json={"model": "team/a", "prompt": "a"})).status_code == 200
        assert (await unload(client, "team/a")).text == "Success: LoRA adapter 'team/a' removed successfully."
        error = error_of(gone := await chat(client, "team/a", stream=True))
        assert (gone.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert (await client.get("/v1/models/team/a")).status_code == 404
        assert (await unload(client, "team/a")).status_code == 404


async def test_what_is_refused_says_why(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a")
    asked = [
        ({"lora_name": MODEL, "lora_path": path}, "lora_name", "conflicts with a served base model"),
        ({"lora_name": "a\n", "lora_path": path}, "lora_name", "printable"),
        ({"lora_name": "", "lora_path": path}, "lora_name", "at least 1 characters"),
        ({"lora_name": "b", "lora_path": str(tmp_path)}, "lora_path", "adapter_config.json"),
        ({"lora_name": "b", "lora_path": "a\0b"}, "lora_path", "no folder"),
        ({"lora_name": "b", "lora_path": path, "x": 1}, "x", "not permitted"),
        ({"lora_name": "a", "lora_path": path}, "lora_name", "load_inplace"),
    ]
    async with as_admin(lora_engine(), tmp_path) as client:
        assert (await load(client, "a", path)).status_code == 200
        for body, param, words in asked:
            refused = await client.post("/v1/load_lora_adapter", json=body)
            error = error_of(refused)
            assert (refused.status_code, error["param"]) == (400, param)
            assert words in error["message"]
        assert (await load(client, "a", path, load_inplace=True)).status_code == 200
        assert (await client.post("/v1/load_lora_adapter", json={"lora_name": "a"})).status_code == 422


async def test_under_way_when_its_adapter_is_unloaded(tmp_path: Path) -> None:
    engine = lora_engine("one two three")
    path = write_adapter(tmp_path / "a")
    async with as_admin(engine, tmp_path) as client:
        await load(client, "a", path)
        engine.scripts[0] = [*engine.scripts[0][:2], HANG]
        hanging = asyncio.create_task(chat(client, "a", stream=True))
        await engine.began.wait()
        assert (await unload(client, "a")).status_code == 200
        assert engine.running
        engine.scripts[0] = engine.play("other")
        assert (await load(client, "a", path)).status_code == 200
        assert events_of(await chat(client, "a", stream=True))[-1]["model"] == "a"
        assert not hanging.done()
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_only_admins_and_only_where_it_is_allowed(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a")
    async with as_admin(lora_engine(), tmp_path, api_keys=("user",)) as client:
        client.headers["authorization"] = "Bearer user"
        assert (await load(client, "a", path)).status_code == 403
        assert (await unload(client, "a")).status_code == 403
    async with as_admin(lora_engine(), tmp_path, allow_runtime_lora_updating=False) as client:
        assert (await load(client, "a", path)).status_code == 404
    async with as_admin(engine_saying("Hi"), tmp_path) as client:
        assert "--enable-lora" in error_of(await load(client, "a", path))["message"]


async def test_those_that_are_there_from_the_start(tmp_path: Path) -> None:
    engine = lora_engine()
    path = write_adapter(tmp_path / "a")
    await app_of(engine, lora_modules=(f"a={path}", f"b={path}")).state.load_adapters()
    assert [adapter.name for adapter in engine.adapters.all()] == ["a", "b"]
    for modules in ((f"{MODEL}={path}",), (f"a={path}", f"a={path}"), ("a=/nowhere",)):
        with pytest.raises(InvalidRequest):
            await app_of(lora_engine(), lora_modules=modules).state.load_adapters()


def test_settings_that_belong_together() -> None:
    lora = ["--lora-modules", "a=/x=y", "b=/z"]
    assert read_settings([*lora, "--enable-lora"], {}).lora_paths == [("a", "/x=y"), ("b", "/z")]
    for flags in (
        lora,
        ["--allow-runtime-lora-updating"],
        ["--enable-lora", "--allow-runtime-lora-updating", "--api-workers", "2"],
        ["--enable-lora", "--lora-modules", "a"],
        ["--enable-lora", "--lora-modules", "=b"],
        ["--enable-lora", "--lora-modules", "lora=b", "lora=c"],
        ["--enable-lora", "--lora-modules", "lora=b", "--served-model-name", "lora"],
    ):
        with pytest.raises(SettingsError, match=r"lora|LoRA"):
            read_settings(flags, {})


# ------------------------------------------------------------------------------------------- the real engine


def peft_adapter(base: Path, folder: Path, seed: int) -> str:
    """An adapter as PEFT writes it, that changes much."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return str(folder)


def said(steps: list[Step]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


async def begin(engine: Engine, request: Generation) -> asyncio.Task[list[Step]]:
    """A request that has had its first step."""
    steps: list[Step] = []
    first = asyncio.Event()

    def take(step: Step) -> None:
        steps.append(step)
        first.set()

    async def run() -> list[Step]:
        await engine.generate(request, take)
        return steps

    task = asyncio.create_task(run())
    await first.wait()
    return task


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
def test_real_adapters_under_traffic(base_model: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [peft_adapter(base_model, tmp_path / f"{seed}", seed) for seed in (1, 2)]
        engine = start_vllm(
            str(base_model),
            [
                *("--max-model-len=512", "--kv-cache-memory-bytes=100000000", "--dtype=float32"),
                *("--enable-lora", "--max-lora-rank=8", "--max-loras=2", "--max-cpu-loras=3"),
            ],
        )
    with asyncio.Runner() as runner:
        try:
            runner.run(_real_adapters(engine, paths, tmp_path))
        finally:
            runner.run(engine.close())
    del engine
    gc.collect()


async def _real_adapters(engine: Engine, paths: list[str], folder: Path) -> None:
    prompt = engine.tokenizer.encode("The capital of France is")

    def asked(name: str, model: str | None) -> Generation:
        return Generation(name, prompt, Sampling(max_tokens=40, temperature=0.0, ignore_eos=True), model=model)

    adapters = engine.adapters
    await adapters.load("one", paths[0])
    await adapters.load("two", paths[1])
    alone = [said(await collect(engine, asked(f"{model}", model))) for model in (None, "one", "two")]
    assert len({tuple(tokens) for tokens in alone}) == 3
    # Of one batch, each request keeps its own; also when its name means another by then, and its folder is gone.
    tasks = [await begin(engine, asked("r1", "one")), await begin(engine, asked("r2", "two"))]
    await adapters.unload("two")
    shutil.rmtree(paths[1])
    await adapters.load("two", paths[0])
    tasks += [asyncio.create_task(collect(engine, asked(f"s{i}", model))) for i, model in enumerate((None, "two"))]
    assert not any(task.done() for task in tasks)
    texts = [said(steps) for steps in await asyncio.gather(*tasks)]
    assert texts == [alone[1], alone[2], alone[0], alone[1]]
    with pytest.raises(ModelNotFound):
        await collect(engine, asked("n", "none"))
    await _refusals(engine, paths[0], folder)
    full = await asyncio.gather(*(collect(engine, asked(f"f{i}", m)) for i, m in enumerate((None, "one", "good"))))
    assert [said(steps) for steps in full] == [alone[0], alone[1], alone[1]]


async def _refusals(engine: Engine, good: str, folder: Path) -> None:
    """With vLLM's reason, and nothing of them stays in the engine."""

    def changed(name: str, **config: Any) -> str:
        path = folder / name
        shutil.copytree(good, path)
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return str(path)

    unknown = write_adapter(folder / "unknown", {"model.layers.0.self_attn.x_proj": (4, 4, 2)})
    large = write_adapter(folder / "large", {"lm_head": (4, 4, 2)})
    for path, reason in (
        (changed("dora", use_dora=True), "DoRA"),
        (changed("rank", r=16), "its rank is 16, and there is room for 8"),
        (unknown, "x_proj"),
        (str(folder / "nowhere"), "no folder"),
        (large, ""),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await engine.adapters.load("bad", path)
        assert reason in caught.value.message
    await engine.adapters.load("good", good)
    with pytest.raises(InvalidRequest, match="room for: 3"):
        await engine.adapters.load("fourth", good)
