"""Anomalies: what an image differs in from normal ones, or from what its own surroundings let the decoder expect."""
