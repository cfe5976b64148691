"""Engines for NVIDIA GPUs, by TensorRT or torch."""
