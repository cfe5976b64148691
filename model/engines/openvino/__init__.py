"""Engines for CPUs, by OpenVINO."""
