"""Training: from folders of images to weights."""
