"""Chooses the exporters of spans by ``OTEL_TRACES_EXPORTER``, like OpenTelemetry's own set-up."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Final

from opentelemetry.sdk.trace.export import SpanExporter

_GROUP: Final = "opentelemetry_traces_exporter"
_OTLP: Final = "otlp"
#: Variables that set the protocol; the first one that is set counts.
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OF_PROTOCOL: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class ExporterError(Exception):
    """An exporter cannot be used; the message says which, and why."""


def exporters(environ: Mapping[str, str]) -> list[SpanExporter]:
    """Return the exporters that the variables name; an empty list for ``none``.

    Raises:
        ExporterError: an exporter is not installed, or refuses its variables.
    """
    names = [name.strip() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",")]
    names = [name for name in names if name] or [_OTLP]
    if names == ["none"]:
        return []
    return [_exporter(_otlp(environ) if name == _OTLP else name) for name in names]


def _otlp(environ: Mapping[str, str]) -> str:
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol not in _OF_PROTOCOL:
        accepted = ", ".join(_OF_PROTOCOL)
        raise ExporterError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}; accepted: {accepted}")
    return _OF_PROTOCOL[protocol]


def _exporter(name: str) -> SpanExporter:
    found = next(iter(entry_points(group=_GROUP, name=name)), None)
    if found is None:
        raise ExporterError(
            f"the exporter {name!r} is not installed. OTEL_TRACES_EXPORTER and "
            "OTEL_EXPORTER_OTLP_PROTOCOL choose the exporter"
        )
    try:
        made = found.load()()
    except Exception as error:
        raise ExporterError(f"the exporter {name!r} cannot be used: {error}") from error
    assert isinstance(made, SpanExporter)
    return made
