"""The set-up script: which engine it chooses, when it has nothing to do, and what it says when a step fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "setup.py"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script as a module, over an empty checkout."""
    specification = importlib.util.spec_from_file_location("project_setup", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_bytes((SCRIPT.parents[1] / "pyproject.toml").read_bytes())
    (tmp_path / "log").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    legacy_client = tmp_path / "openai"
    legacy_client.mkdir()
    python.parent.mkdir(parents=True)
    python.touch()
    paths = {"ROOT": tmp_path, "PYTHON": python, "STAMP": tmp_path / ".venv" / "stamp", "LOG": tmp_path / "log"}
    for name, path in {**paths, "LEGACY_CLIENT": legacy_client}.items():
        monkeypatch.setattr(module, name, path)
    return module


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", "cuda"),
        ("echo 'No devices found'", "cpu"),
        ("echo 'GPU 0: lost'; exit 9", "cpu"),
        (None, "cpu"),
    ],
)
def test_the_engine_follows_the_machine(
    setup: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str | None, kind: str
) -> None:
    if program is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.find_kind() == kind


def test_nothing_is_done_when_nothing_changed(
    setup: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.STAMP.write_text(json.dumps(setup.describe("cpu")))
    monkeypatch.setattr(sys, "argv", ["setup.py", "--kind", "cpu"])
    setup.main()
    assert "up to date" in capsys.readouterr().out


def test_a_change_of_requirements_is_seen_and_one_of_tools_is_not(setup: Any) -> None:
    project = setup.ROOT / "pyproject.toml"
    before = setup.describe("cpu")
    project.write_text(project.read_text().replace("line-length = 120", "line-length = 100"))
    assert setup.describe("cpu") == before
    project.write_text(project.read_text().replace('"orjson>=', '"orjson>'))
    assert setup.describe("cpu") != before


def test_a_damaged_stamp_counts_as_none(setup: Any) -> None:
    setup.STAMP.write_text("{")
    assert setup.read_stamp() is None


def test_a_failing_step_shows_its_last_words(setup: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = "print('because of this'); raise SystemExit(3)"
    with pytest.raises(SystemExit, match=r"because of this\n\ntrying: failed with status 3"):
        setup.step("trying", [sys.executable, "-c", code])
    assert capsys.readouterr().out == "set-up: trying\n"
    assert setup.LOG.read_text() == "because of this\n"
    assert setup.step("trying again", [sys.executable, "-c", code], may_fail=True) is False


@pytest.mark.parametrize(
    ("lines", "milestone"),
    [
        (
            ["Collecting orjson", "  Downloading orjson-3.13.0.whl (150 kB)", "WARNING: slow"],
            "Downloading orjson-3.13.0.whl",
        ),
        (["Installing collected packages: a, b, c", "  Attempting uninstall: a"], "unpacking 3 packages"),
        ([], ""),
    ],
)
def test_progress_names_where_pip_is(setup: Any, lines: list[str], milestone: str) -> None:
    assert setup.find_milestone(lines) == milestone


def test_the_legacy_client_stands_beside_the_current_one(legacy_openai_path: Path) -> None:
    code = "import openai; print(openai.__version__, hasattr(openai, 'ChatCompletion'))"
    environment = {**os.environ, "PYTHONPATH": str(legacy_openai_path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["0.28.1", "True"]
