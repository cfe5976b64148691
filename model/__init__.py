"""Masked autoencoders (He et al. 2021): model, masks, checkpoints, engines. Knows tensors, nothing of HTTP."""
