"""Traces of calls, over OpenTelemetry. Knows no front-end; only `assembly` makes a `Tracing`.

    Service.submit --> CallSpan (sampled, with ids: its call's TRACEPARENT)
    call's end     --> TracedCall --> bounded queue --> thread --> spans --> OTLP

`tracing` and `spans` import OpenTelemetry, which an extra installs. Nobody imports these two
modules unless FLASHPOOL_TELEMETRY is on.
"""
