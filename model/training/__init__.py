"""Training: pretraining and fine-tuning on folders of images."""
