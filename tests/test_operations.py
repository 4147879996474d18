"""docs/operations.md and SECURITY.md against what there is: flags, metrics, the routes and files they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from functionary_vllm import metrics
from functionary_vllm.settings import _FIELDS
from tests.apps import app_of, engine_saying

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "operations.md", ROOT / "SECURITY.md"]
VLLMS = {"max-num-seqs", "no-enable-prefix-caching", "enable-log-requests", "trust-remote-code", "help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_is_one(page: Path) -> None:
    text = page.read_text()
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text))
    assert flags - _FIELDS.keys() - VLLMS == set()
    app_of(engine_saying("Hello"))
    shown = metrics.exposition().decode()
    for name in set(re.findall(r"functionary_(?!vllm)[a-z_]+", text)):
        assert f"# TYPE {name.removesuffix('_total')}" in shown or f"# TYPE {name}" in shown, name
    for path in re.findall(r"\]\(([^)#:]+)", text):
        assert (page.parent / path).exists(), path
    for path in re.findall(r"`((?:tests|configs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_deployment_is_yaml_and_its_times_fit() -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    assert found
    pod = yaml.safe_load(found[1])
    [server] = pod["containers"]
    before = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before + _FIELDS["drain-seconds"].default + 5
    assert {server[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/health"}
