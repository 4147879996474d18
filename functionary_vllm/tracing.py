"""OpenTelemetry: one span a request, when an endpoint is configured; otherwise nothing is imported and nothing paid.

In: the beginning of a request (method, headers), what was asked of the engine, and the facts at its end. Out:
spans of kind SERVER with the gen_ai attributes, joined to the client's trace by its W3C `traceparent`, and the headers
by which the engine's own spans join it. Spans leave in batches, by a thread of the SDK. They carry numbers and names,
none of what was said. Refuses to know HTTP frameworks.

Source of the names: OpenTelemetry semantic conventions 1.38, "Generative AI spans" and "HTTP spans".
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from functionary_vllm.engine.base import Generation

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]

_NAME = "functionary-vllm"
_STANDARD = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACES = "/v1/traces"  # what OTLP over HTTP adds to an endpoint
_CONTEXT = (b"traceparent", b"tracestate")
_LAST_WORDS_S = 2.0  # for the last batch, while the server ends
_ASKED = ("max_tokens", "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed")
_FACTS = {
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "status": "http.response.status_code",
    "error": "error.type",
}
_TIMES = {
    "first_token_ms": "gen_ai.response.time_to_first_chunk",
    "function_name_ms": "functionary.time_to_function_name",
    "first_argument_ms": "functionary.time_to_first_argument",
}


def carried(headers: Headers) -> dict[str, str]:
    """The client's own trace context, if it sent one."""
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in _CONTEXT}


class Tracing:
    """Makes spans, and sends them by its provider."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("functionary_vllm")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER

    def begin(self, method: str, headers: Headers) -> Span:
        context = self._propagator.extract(carried(headers))
        span = self._tracer.start_span(method, context, self._kind, {"http.request.method": method})
        return Span(span, self._propagator)

    async def close(self) -> None:
        """Send what is left, within the time there is; a collector that does not answer would take the SDK 30 s."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.force_flush()
            with suppress(RuntimeError):  # the loop has not waited
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=send, daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await sent.wait()


class Span:
    """One request's."""

    __slots__ = ("_propagator", "_span")

    def __init__(self, span: OtelSpan, propagator: Any) -> None:
        self._span = span
        self._propagator = propagator

    def headers(self) -> dict[str, str]:
        """For those whose spans are to be below this one."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(self._span))
        return carrier

    def ask(self, generation: Generation, model: str) -> None:
        """What is to be generated."""
        sampling = generation.sampling
        asked = {f"gen_ai.request.{name}": getattr(sampling, name) for name in _ASKED}
        self._span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "functionary_vllm",
                "gen_ai.request.model": model,
                "gen_ai.request.choice.count": sampling.n,
                "gen_ai.response.id": generation.id,
                **{name: value for name, value in asked.items() if value is not None},
            }
        )

    def end(self, facts: Mapping[str, Any]) -> None:
        """The facts are those of the request's log line."""
        from opentelemetry.trace import Status, StatusCode

        span = self._span
        if "model" in facts:
            span.update_name(f"chat {facts['model']}")
        else:
            span.update_name(f"{facts['method']} {facts['route']}")
        attributes = {"http.route": facts["route"]}
        attributes |= {_FACTS[name]: value for name, value in facts.items() if name in _FACTS}
        attributes |= {_TIMES[name]: value / 1000 for name, value in facts.items() if name in _TIMES}
        attributes |= {f"functionary.calls.{outcome}": count for outcome, count in facts.get("calls", {}).items()}
        span.set_attributes(attributes)
        if facts["status"] >= 500 or (facts["status"] == 200 and "error" in facts):  # the latter in a stream
            span.set_status(Status(StatusCode.ERROR))
        span.end(time.time_ns())


def start(endpoint: str | None, environ: Mapping[str, str]) -> Tracing | None:
    """None when nobody asks for traces: neither `endpoint` nor OpenTelemetry's standard variables."""
    if endpoint is None and not any(environ.get(name) for name in _STANDARD):
        return None
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        processor = _processor(endpoint, environ)
    except ImportError as error:
        log.warning("No traces, though an endpoint is set: pip install 'functionary-vllm[otel]' (%s).", error)
        return None
    resource = Resource.create({})
    if "OTEL_SERVICE_NAME" not in environ and "service.name" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        resource = resource.merge(Resource({"service.name": _NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return Tracing(provider)


def _processor(endpoint: str | None, environ: Mapping[str, str]) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return BatchSpanProcessor(GrpcExporter(endpoint))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    if endpoint is not None and not endpoint.endswith(_TRACES):
        endpoint = endpoint.rstrip("/") + _TRACES
    return BatchSpanProcessor(OTLPSpanExporter(endpoint))
