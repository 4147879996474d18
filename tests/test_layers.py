"""The architecture, asserted: who may import whom, and how large a file, a function or a signature may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "functionary_vllm"
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = [*MODULES, ROOT / "serve.py", *sorted((ROOT / "benchmarks").rglob("*.py"))]

# From the bottom up: a module may import its own layer and those before it.
LAYERS = (
    ("recent", "errors", "conversation", "events", "refs", "schema", "history", "offer", "detokenizer", "outcome"),
    ("formats",),
    ("engine.base", "backlog"),
    ("pipeline",),
    ("settings", "metrics", "tracing"),
    ("api",),
    ("serving",),
)
# Beside the layers: engines know errors and events only, models nothing of the rest. serving, on top, starts both.
BESIDE = {
    "engine": {"engine", "errors", "events"},
    "models": {"models"},
}
# On top of all, and imported by none of it, so that a server needs nothing of what they need: what each may import.
_VALUES = {"errors", "conversation", "events", "refs", "schema", "history", "offer", "detokenizer", "formats"}
ON_TOP = {
    "training": {"training", "models", *_VALUES},
    "evaluation": {"evaluation", "engine", *_VALUES},
    "cli": set(),  # a subcommand's module is imported when it runs
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def layer(name: str) -> int | None:
    for number, members in enumerate(LAYERS):
        if any(name == member or name.startswith(member + ".") for member in members):
            return number
    return None


def own_imports(path: Path) -> set[str]:
    prefix = "functionary_vllm."
    return {name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_import_arrow(path: Path) -> None:
    name = name_of(path)
    beside = BESIDE.get(name.split(".")[0])
    for imported in own_imports(path):
        top = imported.split(".")[0]
        if (allowed := ON_TOP.get(name.split(".")[0])) is not None:
            assert top in allowed, f"{name} imports {imported}"
            continue
        assert top not in ON_TOP, f"{name} imports {imported}, which stands on top"
        if layer(name) is not None:
            target = layer(imported)
            if target is None and top in BESIDE and not name.startswith("serving"):
                pytest.fail(f"{name} imports {imported}, which stands beside the layers")
            assert target is None or target <= (layer(name) or 0), f"{name} imports {imported}"
        elif beside is not None:
            assert top in beside, f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_who_may_import_what(path: Path) -> None:
    name = name_of(path)
    tops = {imported.split(".")[0] for imported in imports(path)}
    if not name.startswith("engine.vllm") and name != "formats.vllm_parser":
        assert "vllm" not in tops
    if not name.startswith(("api", "settings", "serving")):
        assert not tops & {"fastapi", "starlette", "pydantic", "uvicorn"}
    if not name.startswith("training"):
        assert not tops & {"peft", "matplotlib"}
    assert not {i for i in imports(path) if i.startswith("tests")}


def test_formats_import_vllm_only_when_one_of_vllms_is_asked_for() -> None:
    program = "import sys, functionary_vllm.formats; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_ceilings(path: Path) -> None:
    text = path.read_text()
    limit = 80 if path.name == "serve.py" else 400
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            assert count <= 5, f"{node.name} takes {count} parameters"


@pytest.mark.parametrize("path", [path for path in MODULES if path.read_text().strip()], ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_public_names() -> None:
    import functionary_vllm

    assert functionary_vllm.__all__ == sorted(functionary_vllm.__all__)
    assert all(hasattr(functionary_vllm, name) for name in functionary_vllm.__all__)
