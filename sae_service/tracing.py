"""OpenTelemetry: one trace from the request that submits a job to its training steps. Nothing is imported while it is off.

Where traces are sent is said by the standard OTEL_* variables. A job keeps the place of its submission in its trace, as a
W3C `traceparent`; each of its attempts is a part of that trace, in whatever process and on whatever machine.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sae_service.errors import InvalidSetting

F = TypeVar("F", bound=Callable[..., Any])
_tracer: Any = None
_above: str | None = None


def start(process: str, above: str | None = None) -> None:
    """Makes this process trace, at its end too. Raises InvalidSetting without the extra.

    Args:
        process: its name, as `service.name` of OTEL_RESOURCE_ATTRIBUTES or OTEL_SERVICE_NAME may say otherwise.
        above: the traceparent of what has no span above it in this process.
    """
    global _tracer, _above
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidSetting("SAE_SERVICE_TRACING: install sae-service[tracing], or leave it off") from error
    resource = Resource.create({"service.name": f"sae-service-{process}"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer, _above = provider.get_tracer("sae_service"), above


@contextmanager
def span(name: str, above: str | None = None, began_ns: int | None = None, **attributes: Any) -> Iterator[None]:
    """A part of the trace, below the one that is open on this thread or task, or else below `above`.

    Args:
        began_ns: Unix time in ns at which it began, if that is past.
    """
    if _tracer is None:
        yield
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    above = above or (None if trace.get_current_span().get_span_context().is_valid else _above)
    context = TraceContextTextMapPropagator().extract({"traceparent": above}) if above else None
    with _tracer.start_as_current_span(name, context, attributes=attributes, start_time=began_ns):
        yield


def traced(name: str) -> Callable[[F], F]:
    """Makes each call of a function a span."""

    def around(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with span(name):
                return function(*args, **options)

        return call  # pyright: ignore[reportReturnType]

    return around


def current() -> str | None:
    """The traceparent of the open span, or None."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def finish() -> None:
    """Sends what is left. For a process that ends without Python's own end."""
    if _tracer is not None:
        _tracer.span_processor.force_flush(2000)
