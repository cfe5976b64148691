"""File formats of images: what their bytes say before a pixel is decoded, and what Pillow is given to decode."""
