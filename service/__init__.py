"""The web service: knows HTTP, and of models only the engines, the masks and the sources of weights."""
