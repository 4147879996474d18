"""benchmarks/figures, report, page: what the figures are, by hand; and a page that is whole and loads nothing else."""

from __future__ import annotations

import re
import statistics
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report
from benchmarks.loadgen.client import Record
from benchmarks.loadgen.figures import (
    FileError,
    Run,
    is_good,
    latencies,
    over_time,
    parse_slo,
    percentile,
    read_run,
    summary,
)
from benchmarks.loadgen.figures import warnings as doubts
from benchmarks.loadgen.page import page
from benchmarks.report import table

VOID = {"meta", "br"}


def record(session: int = 0, planned: float = 0.0, **fields: Any) -> Record:
    """Sent when planned; first token after 100 ms, then three gaps; 9 tokens."""
    values: dict[str, Any] = {
        "sent": planned,
        "first_token": planned + 0.1,
        "end": planned + 0.2,
        "status": 200,
        "tokens_in": 10,
        "tokens_out": 9,
        "chunks": 4,
        "gaps": [10.0, 20.0, 50.0],
    }
    return Record(session, 0, planned, **{**values, **fields})


def run_of(*records: Record, **end: Any) -> Run:
    about = {"profile": "tools", "model": "m", "rate": 2.0, "arrival": "poisson", "slo": {"ttft": 150}}
    return Run(about, list(records), [], {"generator": {"lag_p99_ms": 1.0, "cpu_share": 0.1}, **end})


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_percentiles(values: list[float]) -> None:
    ordered = sorted(values)
    assert percentile(ordered, 50) == pytest.approx(statistics.median(ordered))
    assert (percentile(ordered, 0), percentile(ordered, 100)) == (ordered[0], ordered[-1])
    quantiles = statistics.quantiles(ordered, n=100, method="inclusive")
    assert percentile(ordered, 99) == pytest.approx(quantiles[98])


def test_latencies_count_from_the_plan() -> None:
    found = latencies(record(planned=1.0, sent=1.05, name=1.12, argument=1.13))
    assert found == pytest.approx(
        {"ttft": 100, "name": 120, "argument": 130, "e2e": 200, "itl": 80 / 3, "tpot": 80 / 8}, abs=1e-6
    )
    assert set(latencies(Record(0, 0, 0.0, end=1.0))) == {"e2e"}


@pytest.mark.parametrize(
    ("good", "slo", "fields"),
    [
        (True, {}, {}),
        (True, {"ttft": 100.1, "e2e": 200.1, "itl": 27}, {}),
        (False, {"ttft": 99.9}, {}),
        (False, {"itl": 26}, {}),
        (False, {"tpot": 9.9}, {}),
        (True, {"name": 1}, {}),  # there is none that could be late
        (False, {"name": 1}, {"name": 0.1}),
        (False, {}, {"error": "5xx"}),
        (False, {}, {"problems": ["no usage"]}),
    ],
)
def test_what_is_good(good: bool, slo: dict[str, float], fields: dict[str, Any]) -> None:
    assert is_good(record(**fields), slo) is good


def test_limits_are_read_or_refused() -> None:
    assert parse_slo("ttft=500, itl=2.5") == {"ttft": 500.0, "itl": 2.5}
    for wrong in ("speed=1", "ttft", "ttft=fast"):
        with pytest.raises(ValueError, match=r"speed|''|fast"):
            parse_slo(wrong)


def test_the_summary_counts_each_request_once() -> None:
    run = run_of(
        record(0),
        record(1, planned=1.0, first_token=1.3, end=2.0),  # past the SLO's 150 ms
        record(2, planned=1.0, sent=1.02, problems=["no usage", "no finish reason"]),  # late and broken
        Record(3, 0, 1.0, 1.0, end=1.5, status=429, error="429"),
        Record(4, 0, 1.0, end=4.0, error="missed"),
        Record(5, 0, 1.0, 1.0, end=4.0, error="interrupted"),
    )
    found = summary(run)
    expected = {
        **{"seconds": 4.0, "requests": 5, "sent": 4, "answered": 3, "interrupted": 1, "late": 1, "missed": 1},
        **{"error_rate": 0.4, "broken": 1, "tokens_out": 27, "tokens_per_s": 6.75},
        **{"goodput": 0.25, "good_share": 0.2, "requests_per_s": 0.75},
    }
    assert found["errors"] == {"429": 1, "missed": 1}
    assert found["problems"] == {"no usage": 1, "no finish reason": 1}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found["latency"]["ttft"]["count"] == 3
    assert found["latency"]["itl"]["count"] == 9
    assert summary(run, {})["goodput"] == 0.5
    told = " ".join(doubts(run, found))
    assert "1 of 4 requests went out more than 10 ms late" in told
    assert "1 requests were never sent" in told


@pytest.mark.parametrize(
    ("generator", "told"),
    [
        ({"lag_p99_ms": 1.0, "cpu_share": 0.1}, None),
        ({"lag_p99_ms": 50.0, "cpu_share": 0.1}, "a core of its own"),
        ({"lag_p99_ms": 50.0, "cpu_share": 0.95}, "several processes"),
    ],
)
def test_a_generator_that_is_the_bottleneck_says_so(generator: dict[str, float], told: str | None) -> None:
    run = run_of(record(), generator=generator)
    found = doubts(run, summary(run))
    assert (found == []) if told is None else (told in found[0])


def test_tokens_stand_where_their_chunks_came() -> None:
    run = run_of(record(planned=0.0, first_token=1.0, gaps=[2000.0], chunks=2, tokens_out=8, end=4.0))
    courses = over_time(run, bins=4)
    assert courses["tokens"] == [(0.5, 0.0), (1.5, 4.0), (2.5, 0.0), (3.5, 4.0)]
    assert courses["ttft"] == [(0.5, 1000.0)]
    assert [count for _, count in courses["active"]] == [1.0] * 4
    assert [count for _, count in courses["errors"]] == [0.0] * 4


class Page(HTMLParser):
    """Refuses tags that do not close, and collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def parsed(text: str) -> Page:
    found = Page()
    found.feed(text)
    found.close()
    assert found.open == []
    assert found.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not re.search(r"https?:|url\(|@import|//\w", text)
    return found


def several(count: int) -> Run:
    return run_of(*(record(i, i * 0.1, first_token=i * 0.1 + 0.05 + 0.01 * (i % 7)) for i in range(count)))


def test_a_page_of_several_runs() -> None:
    failing = run_of(*several(20).records, Record(99, 0, 1.0, 1.0, end=1.2, status=500, error="5xx"))
    text = page({"ours": several(30), "<b>theirs & others</b>": failing})
    found = parsed(text)
    assert "&lt;b&gt;theirs &amp; others" in text
    assert "<b>theirs" not in text
    # ttft, itl, tpot, e2e; tokens, ttft, requests under way, errors
    assert found.tags.count("svg") == 8
    assert found.tags.count("rect") == 1
    assert found.tags.count("polyline") == 2 * 7
    assert "nan" not in text
    assert "inf" not in re.sub(r"info", "", text)


@pytest.mark.parametrize(
    "run",
    [
        run_of(),
        run_of(record(gaps=[], chunks=1, tokens_out=1, first_token=0.2)),
        run_of(Record(0, 0, 0.0, 0.0, end=0.1, error="connect")),
        Run({"profile": "chat"}, [record(gaps=[0.0, 0.0])]),
    ],
    ids=["empty", "one token", "nothing answered", "crashed"],
)
def test_runs_with_little_in_them(run: Run) -> None:
    assert "requests" in table({"run": run})
    parsed(page({"run": run}))


def test_the_table_sets_runs_side_by_side() -> None:
    text = table({"ours": several(30), "theirs": several(10)})
    assert re.search(r"^ +ours +theirs$", text, re.M)
    assert re.search(r"^requests +30 in 3.1 s +10 in 1.1 s$", text, re.M)
    assert re.search(r"^ttft: time to first token +ours +30 ", text, re.M)
    assert re.search(r"^ +theirs +10 ", text, re.M)
    assert "run  count" not in table({"ours": several(3)})


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def test_a_file_that_a_crash_cut_is_read(tmp_path: Path) -> None:
    about, line = {"type": "run", "profile": "tools"}, {"type": "request", **asdict(record()), "of later versions": 1}
    path = written(tmp_path / "cut.jsonl", about, line, line)
    path.write_bytes(path.read_bytes()[:-30])
    run = read_run(path)
    assert run.records == [record()]
    assert "the load process died" in doubts(run, summary(run))[0]


@pytest.mark.parametrize("text", ["", "{}\n{}\n", '{"type": "request"}\n', "[]\n[]\n", "no\nruns\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(FileError, match=r"other\.jsonl is no run"):
        read_run(path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"type": "run", "profile": "chat", "model": "m"}, {"type": "request", **asdict(record())}]
    first, second = written(tmp_path / "a.jsonl", *lines), written(tmp_path / "b.jsonl", *lines)
    monkeypatch.setattr(sys, "argv", ["report", str(first), str(second), "--html", str(tmp_path / "o.html")])
    assert report.main() == 0
    assert "ttft" in capsys.readouterr().out
    parsed((tmp_path / "o.html").read_text())
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "none.jsonl")])
    assert report.main() == 2
    assert "is no run" in capsys.readouterr().err
