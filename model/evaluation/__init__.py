"""Evaluation of a model on labelled images: neighbours, probes and masked reconstruction; and whitening."""
