"""Checkpoint files: our own format, published formats, classification heads and whitening."""
