"""Masked autoencoders (He et al. 2021): model, masking, checkpoints, compiled engines. Knows tensors, nothing of HTTP."""
