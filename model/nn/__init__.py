"""The networks, and the class that each family of masked autoencoders has."""

from __future__ import annotations

from model.config import Family, MAEConfig
from model.nn.base import Autoencoder
from model.nn.resnet import ConvMaskedAutoencoder
from model.nn.vit import MaskedAutoencoder

FAMILIES: dict[Family, type[Autoencoder]] = {"vit": MaskedAutoencoder, "resnet": ConvMaskedAutoencoder}


def build_model(config: MAEConfig) -> Autoencoder:
    """Builds a freshly initialised model of the config's family and sizes."""
    return FAMILIES[config.family](config)
