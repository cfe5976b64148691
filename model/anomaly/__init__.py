"""Anomalies: how far patches are from those of normal images, or from the decoder's prediction by other patches."""
