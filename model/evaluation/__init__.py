"""What a model is worth on labelled images: neighbours, probes and masked reconstruction; and whitening."""
