"""Traces of inference requests. OpenTelemetry is imported only where a variable OTEL_… asks for traces."""
