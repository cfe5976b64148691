"""Bytes of image files <-> pixels <-> patches. The package imports no torch."""
