"""Traces of calls, over OpenTelemetry. Only `assembly` creates a `Tracing`.

    Service.submit --> CallSpan (sampled, with ids: its call's TRACEPARENT)
    call finished  --> TracedCall --> bounded queue --> thread --> spans --> OTLP

`tracing` and `spans` import OpenTelemetry, which an extra installs. These modules are imported only
if FLASHPOOL_TELEMETRY is on.
"""
