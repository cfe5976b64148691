"""Engines: compiled forms of a masked autoencoder behind one protocol."""
