"""Bytes of image files <-> pixels <-> patches. No torch."""
