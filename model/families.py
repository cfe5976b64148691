"""The families of masked autoencoders: which class a config asks for."""

from __future__ import annotations

from model.autoencoder import Autoencoder
from model.config import Family, MAEConfig
from model.mae import MaskedAutoencoder
from model.resnet import ConvMaskedAutoencoder

FAMILIES: dict[Family, type[Autoencoder]] = {"vit": MaskedAutoencoder, "resnet": ConvMaskedAutoencoder}


def autoencoder(config: MAEConfig) -> Autoencoder:
    """A freshly initialised model of the config's family and sizes."""
    return FAMILIES[config.family](config)
