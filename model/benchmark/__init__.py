"""Benchmarks of an engine, beside torch and beside the roofline of its device."""
