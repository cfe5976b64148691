"""The Open Inference Protocol, version 2: its tensors, and the models that it names."""
