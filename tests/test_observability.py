"""configs/observability: what the rules and the dashboard ask for is what the server shows, to the label."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from functionary_vllm import metrics
from functionary_vllm.outcome import OUTCOMES

FOLDER = Path(__file__).parents[1] / "configs" / "observability"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
ADDED = {"job", "instance"}  # by Prometheus

_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool"}
_SHOWN = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"][1:]:
        query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert query is not None
        assert query[2] in ADDED
        yield variable["name"], query[1]


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric of an expression, with its matchers."""
    text = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    for match in re.finditer(r'([a-zA-Z_:][\w:]*)(\s*\()?(?:\{((?:[^"}]|"[^"]*")*)\})?', text):
        if not match[2] and match[1] not in _WORDS:
            yield match[1], match[3] or ""


@cache
def ours() -> dict[str, set[str]]:
    """Our metrics as they are shown, with their labels."""
    shown: dict[str, set[str]] = {}
    for name, collector in vars(metrics).items():
        if name.isupper() and hasattr(collector, "_labelnames"):
            for family in collector.describe():
                suffix = "_total" if family.type == "counter" else ""
                for end in _SHOWN[family.type]:
                    labels = {*collector._labelnames, *(["le"] if end == "_bucket" else [])}
                    shown[family.name + suffix + end] = labels
    exposed = metrics.exposition().decode()
    assert all(
        f"# TYPE {name.removesuffix('_bucket')} " in exposed for name in shown if not name.endswith(("sum", "count"))
    )
    return shown


@cache
def vllms() -> set[str]:
    """vLLM's, by its source: to see them it would have to run."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    source = (Path(spec.submodule_search_locations[0]) / "v1" / "metrics" / "loggers.py").read_text()
    found = set()
    for kind, name in re.findall(r'_(counter|gauge|histogram)_cls\(\s*name="(vllm:\w+)"', source):
        found |= {name + ("_total" if kind == "counter" else "") + end for end in _SHOWN[kind]}
    assert len(found) > 40
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda text: text[:40])
def test_all_that_is_asked_for_is_shown(where: str, expression: str) -> None:
    found = list(selectors(expression))
    assert found
    for name, matchers in found:
        assert name in {*ours(), *vllms(), *RECORDED, "up", "process_cpu_seconds_total"}, f"{where} asks for {name}"
        labels = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers))
        assert labels <= ours().get(name, set()) | ADDED, f"{where}: {name} has no such label"
        for values in re.findall(r'outcome=~?"([^"]*)"', matchers):
            assert set(values.split("|")) <= set(OUTCOMES)
    if all(name in ours() for name, _ in found):
        known = ADDED.union(*(ours()[name] for name, _ in found))
        for grouped in re.findall(r"\bby\s*\(([^)]*)\)", expression):
            assert {label.strip() for label in grouped.split(",")} <= known, f"{where} groups by what is not there"


def test_the_reading_of_expressions_finds_what_is_wrong() -> None:
    expression = 'sum by (le) (rate(a_bucket{b="c", d=~"e|f"}[5m])) / on (x) (g:h > 0) and up == 0'
    assert list(selectors(expression)) == [("a_bucket", 'b="c", d=~"e|f"'), ("g:h", ""), ("up", "")]


def test_each_of_our_metrics_is_on_the_dashboard_or_described() -> None:
    page = (FOLDER.parents[1] / "docs" / "metrics.md").read_text()
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in ours()}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_legends_name_labels_that_are_left() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"\bby\s*\(([^)]*)\)", target["expr"])))) | ADDED
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, panel["title"]


def test_alerts_say_what_to_do() -> None:
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_loads_the_rules_and_scrapes_where_the_alerts_look() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert all((FOLDER / name).exists() for name in config["rule_files"])
    jobs = {scrape["job_name"] for scrape in config["scrape_configs"]}
    assert {job for rule in RULES for job in re.findall(r'job="(\w+)"', rule["expr"])} == jobs


def test_what_stands_in_for_vllm_has_vllms_names(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()  # vLLM may have registered its own in this process
    monkeypatch.setattr(metrics, "_stand_in", None)
    metrics.stand_in_for_vllm("model", registry)
    families = list(registry.collect())
    assert len(families) == 7
    for family in families:
        suffix = "_total" if family.type == "counter" else ""
        assert {family.name + suffix + end for end in _SHOWN[family.type]} <= vllms()
