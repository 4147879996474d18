"""Berkeley's function-calling leaderboard: its questions, its own rules for tools and its own AST checker.

In: the package `bfcl-eval`. Out: the suite `bfcl`, a measure a category. Nothing is matched here: the entries (with the
hints that BFCL adds to descriptions), their conversion into OpenAI's tools, the checker and what counts as a call are
calls into the package, put together as its eval_runner and its OpenAI handler do. So names with dots have underscores,
an irrelevant question is right when no call could be decoded, a relevant one when any could.

Left out: Java and JavaScript (their arguments are source code, read with tree-sitter), several turns, agents.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

from functionary_vllm.evaluation.bfcl_words import data_folder
from functionary_vllm.evaluation.cases import Answers, Call, Case, Verdict

CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
)
_MODEL = "openai"  # whom the checker thinks it checks: a model whose function names cannot have dots

# Modules of bfcl_eval that would import the clients of all vendors, and tree-sitter with two of its grammars. The first
# is asked one question by the checker: whether dots in a model's function names were replaced.
_STAND_INS: dict[str, dict[str, Any]] = {
    "bfcl_eval.constants.model_config": {"MODEL_CONFIG_MAPPING": {_MODEL: SimpleNamespace(underscore_to_dot=True)}},
    "bfcl_eval.model_handler.parser.java_parser": {"parse_java_function_call": None},
    "bfcl_eval.model_handler.parser.js_parser": {"parse_javascript_function_call": None},
}


@dataclass(frozen=True, slots=True)
class _Package:
    """What is used of bfcl_eval."""

    ast_checker: Any
    convert_to_tool: Any
    types: Any
    style: Any
    python: Any
    utils: Any


_loaded: _Package | None = None
_scratch: tempfile.TemporaryDirectory[str] | None = None


def package() -> _Package:
    """bfcl_eval, imported without what its checker does not need. Raises ModuleNotFoundError where it is missing."""
    global _loaded
    if _loaded is None:
        data_folder()  # says how to install it
        with _stand_ins(), _own_folder():
            utils = importlib.import_module("bfcl_eval.utils")
            enums = importlib.import_module("bfcl_eval.constants.enums")
            _loaded = _Package(
                ast_checker=importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker,
                convert_to_tool=importlib.import_module("bfcl_eval.model_handler.utils").convert_to_tool,
                types=importlib.import_module("bfcl_eval.constants.type_mappings").GORILLA_TO_OPENAPI,
                style=enums.ModelStyle.OPENAI_COMPLETIONS,
                python=enums.Language.PYTHON,
                utils=utils,
            )
    return _loaded


@contextmanager
def _stand_ins() -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in _STAND_INS}
    for name, members in _STAND_INS.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


@contextmanager
def _own_folder() -> Iterator[None]:
    """On import it makes folders for results and locks, by default beside itself among the installed packages."""
    global _scratch
    if "BFCL_PROJECT_ROOT" in os.environ:
        yield
        return
    _scratch = tempfile.TemporaryDirectory(prefix="bfcl-")  # it locks files there as long as this process reads
    os.environ["BFCL_PROJECT_ROOT"] = _scratch.name
    try:
        yield
    finally:
        del os.environ["BFCL_PROJECT_ROOT"]


class Bfcl:
    name = "bfcl"
    order = CATEGORIES

    def __init__(self, categories: Sequence[str] = CATEGORIES) -> None:
        self._categories = categories

    @property
    def version(self) -> str:
        return version("bfcl-eval")

    def cases(self) -> list[Case]:
        return [case for category in self._categories for case in _cases(category)]

    def measures(self, case: Case) -> tuple[str, ...]:
        return (case.gold["category"],)

    def judge(self, case: Case, ways: Sequence[Answers]) -> Verdict:
        category = case.gold["category"]
        check = check_relevance if "relevance" in category else check_calls
        why = check(case, ways[0][0].calls)
        return Verdict({category: not why}, why)


def _cases(category: str) -> Iterator[Case]:
    utils = package().utils
    entries = utils.load_dataset_entry(category)
    answers = {}
    if "relevance" not in category:
        answers = {answer["id"]: answer["ground_truth"] for answer in utils.load_ground_truth_entry(category)}
    for entry in entries:
        tools = package().convert_to_tool(entry["function"], package().types, package().style)
        gold = {"category": category, "functions": entry["function"], "answers": answers.get(entry["id"])}
        yield Case(entry["id"], (entry["question"][0],), {"tools": tools} if tools else {}, gold)


def _decode(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """As BFCL's OpenAI handler: no calls are text, which it fails to decode. Raises ValueError."""
    if not calls:
        raise ValueError("no call")
    return [{call.name: json.loads(call.arguments)} for call in calls]


def check_relevance(case: Case, calls: Sequence[Call]) -> str:
    """What is wrong with them, nothing if they are right; as _evaluate_single_relevance_entry."""
    try:
        called = not package().utils.is_empty_output(_decode(calls))
    except ValueError:
        called = False
    if "irrelevance" in case.gold["category"]:
        return "a call that should not be" if called else ""
    return "" if called else "no call"


def check_calls(case: Case, calls: Sequence[Call]) -> str:
    """As _evaluate_single_ast_entry."""
    try:
        decoded = _decode(calls)
    except ValueError:
        return "broken JSON" if calls else "no call"
    if not package().utils.is_function_calling_format_output(decoded):
        return "arguments that are no object"
    gold = case.gold
    check = package().ast_checker
    try:
        result = check(gold["functions"], decoded, gold["answers"], package().python, gold["category"], _MODEL)
    except (TypeError, AttributeError, LookupError):  # some values of another type: BFCL's own run would end here
        return "the checker broke on it"
    return "" if result["valid"] else str(result["error_type"])
