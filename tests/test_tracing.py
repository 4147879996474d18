"""Traces: one span a request with the gen_ai attributes, joined to the client's trace; nothing at all when off."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from functionary_vllm import tracing
from tests.apps import PATH, TOOLS, USER, ask, call_text, client_of, engine_saying

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
ON = {"otlp_endpoint": "http://127.0.0.1:9"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "_processor", lambda endpoint, environ: SimpleSpanProcessor(exporter))
    return exporter


def the_span(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    return span


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_span_of_the_clients_trace(spans: InMemorySpanExporter, stream: bool) -> None:
    engine = engine_saying(call_text())
    async with client_of(engine, **ON) as client:
        body = {
            "model": "alias",
            "messages": USER,
            "tools": TOOLS,
            "stream": stream,
            "max_tokens": 99,
            "temperature": 0,
        }
        response = await client.post(PATH, json=body, headers=CONTEXT)
    assert response.status_code == 200
    span = the_span(spans)
    assert (span.name, span.kind, span.status.status_code) == ("chat alias", SpanKind.SERVER, StatusCode.UNSET)
    assert span.context is not None
    assert span.parent is not None
    assert (format_trace_id(span.context.trace_id), format_span_id(span.parent.span_id)) == (TRACE, PARENT)
    attributes = dict(span.attributes or {})
    assert 0 < attributes.pop("gen_ai.response.time_to_first_chunk") < 10  # type: ignore[operator]
    times = {"functionary.time_to_function_name", "functionary.time_to_first_argument"}
    assert {name for name in times if attributes.pop(name, 0)} == (times if stream else set())
    assert attributes == {
        "http.request.method": "POST",
        "http.route": PATH,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "functionary_vllm",
        "gen_ai.request.model": "alias",
        "gen_ai.response.model": "alias",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 99,
        "gen_ai.request.temperature": 0,
        "gen_ai.response.id": engine.requests[0].id,
        "gen_ai.usage.input_tokens": len(engine.requests[0].prompt_ids),
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": len(engine.tokenizer.encode(call_text())) + 1,
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "functionary.calls.valid": 1,
    }
    # What the engine does belongs below this span.
    below = f"00-{TRACE}-{format_span_id(span.context.span_id)}-01"
    assert engine.requests[0].trace == {"traceparent": below, "tracestate": "vendor=1"}


async def test_without_spans_the_engine_joins_the_clients_trace() -> None:
    engine = engine_saying("Hi")
    async with client_of(engine) as client:
        for headers in (CONTEXT, {}):
            await client.post(PATH, json={"messages": USER}, headers=headers)
    assert [request.trace for request in engine.requests] == [CONTEXT, None]


@pytest.mark.parametrize("traceparent", ["", "00-0-0-01", "garbage" * 100, f"00-{'0' * 32}-{PARENT}-01"])
async def test_a_broken_context_begins_a_trace(spans: InMemorySpanExporter, traceparent: str) -> None:
    async with client_of(engine_saying("Hi"), **ON) as client:
        await client.post(PATH, json={"messages": USER}, headers={"traceparent": traceparent})
    assert the_span(spans).parent is None


async def test_errors_are_told_by_their_code(spans: InMemorySpanExporter) -> None:
    engine = engine_saying("Hello")
    engine.scripts = [[*engine.play("Hello")[:2], ZeroDivisionError("a secret")]]
    await ask(engine, ON, stream=True)
    await ask(engine, ON, temperature=9)
    async with client_of(engine, **ON) as client:
        await client.get("/nope")
        await client.get("/health")  # watchers fill no collector
    broken, refused, unknown = spans.get_finished_spans()
    told = [(span.name, span.status.status_code, dict(span.attributes or {})) for span in (broken, refused, unknown)]
    assert [(name, status, attributes.get("error.type")) for name, status, attributes in told] == [
        ("chat fake", StatusCode.ERROR, "internal_error"),
        (f"POST {PATH}", StatusCode.UNSET, "invalid_value"),
        ("GET other", StatusCode.UNSET, None),
    ]
    assert "secret" not in str(told)
    assert not any(span.events for span in (broken, refused, unknown))


@pytest.mark.parametrize(
    ("endpoint", "environ", "on"),
    [
        (None, {}, False),
        ("http://127.0.0.1:9", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ("http://127.0.0.1:9", {"OTEL_SDK_DISABLED": "true"}, False),
        ("http://127.0.0.1:9", {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_who_turns_it_on(spans: InMemorySpanExporter, endpoint: str | None, environ: dict[str, str], on: bool) -> None:
    assert (tracing.start(endpoint, environ) is not None) == on


def test_nothing_is_imported_when_it_is_off() -> None:
    program = (
        "import sys\n"
        "from tests.apps import app_of, engine_saying\n"
        "app_of(engine_saying('Hi')).build_middleware_stack()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing.start("http://127.0.0.1:9", {}) is None
    assert [(record.levelno, "functionary-vllm[otel]" in record.message) for record in caplog.records] == [
        (logging.WARNING, True)
    ]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


async def test_spans_reach_the_collector_before_the_server_ends(
    collector: tuple[str, list[ExportTraceServiceRequest]],
) -> None:
    address, received = collector
    traces = tracing.start(address, {"OTEL_RESOURCE_ATTRIBUTES": ""})
    assert traces is not None
    span = traces.begin("GET", [])
    span.end({"method": "GET", "route": "/v1/models", "status": 200})
    await traces.close()
    (resource,) = received[0].resource_spans
    assert [span.name for span in resource.scope_spans[0].spans] == ["GET /v1/models"]
    named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert named["service.name"] == "functionary-vllm"
