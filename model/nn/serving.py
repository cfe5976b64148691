"""The graphs that get compiled: patches of bytes in, vectors or pixels in bytes out.

All steps in between lie in the graph: standardisation, pooling, the error of each patch, and the way back to pixels.
So one byte per channel crosses to the device, and no host code can disagree with the model about the meaning of a
pixel. The graphs take indices of patches instead of masks (see `model.masking`), since every compiler converts those
with a dynamic batch and a dynamic K.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import Preprocessing
from model.nn.base import Autoencoder
from model.nn.losses import patch_loss, patch_statistics
from model.nn.vit import MaskedAutoencoder


class Standardise(nn.Module):
    """Standardises the pixels of patches, (x / 255 - mean) / std, and turns predictions back into pixels."""

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocessing: Preprocessing, patch_size: int) -> None:
        """Repeats mean and std over the P = p * p * 3 numbers of a patch."""
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).repeat(patch_size**2))
        self.register_buffer("shift", (mean / std).repeat(patch_size**2))

    def forward(self, patches: Tensor) -> Tensor:
        """Uint8 [..., P] -> float [..., P]."""
        return patches.to(self.scale.dtype) * self.scale - self.shift

    def pixels(self, standardised: Tensor) -> Tensor:
        """Standardised float [..., P] -> integers 0..255, as float [..., P]."""
        return ((standardised + self.shift) / self.scale).round().clamp(0, 255)


class EncoderGraph(nn.Module):
    """Uint8 [B, K, P], int32 [B, K] -> pooled [B, 2, D] (cls, mean of the patch tokens), latent [B, 1 + K, D].

    A model without a vector of a cls token has the mean twice.
    """

    def __init__(self, model: Autoencoder, preprocessing: Preprocessing) -> None:
        """Wraps the encoder of `model`."""
        super().__init__()
        self.model = model
        self.standardise = Standardise(preprocessing, model.config.patch_size)

    def forward(self, patches: Tensor, visible_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the visible patches and pools them."""
        latent = self.model.forward_encoder(self.standardise(patches), visible_indices)
        return self.model.pool(latent[:, 0], latent[:, 1:].mean(dim=1)), latent


class PaddedEncoderGraph(nn.Module):
    """An `EncoderGraph` for images with different numbers of visible patches: an index below 0 is padding.

    It is a graph of its own, so that batches without padding pay for no attention mask. Tokens of padding mean nothing.
    """

    def __init__(self, model: MaskedAutoencoder, preprocessing: Preprocessing) -> None:
        """Wraps the encoder of `model`."""
        super().__init__()
        self.model = model
        self.standardise = Standardise(preprocessing, model.config.patch_size)

    def forward(self, patches: Tensor, visible_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the visible patches and pools them."""
        present = visible_indices >= 0  # [B, K]
        latent = self.model.forward_encoder(self.standardise(patches), visible_indices.clamp(min=0), present)
        weight = present.to(latent.dtype)[..., None]
        mean = (latent[:, 1:] * weight).sum(dim=1) / weight.sum(dim=1)  # [B, D]
        return self.model.pool(latent[:, 0], mean), latent


class DecoderGraph(nn.Module):
    """Latent [B, 1 + K, D], restore indices int32 [B, N], uint8 [B, N, P] -> pixels [B, N, P], squared error [B, N].

    With `to_bytes` False the pixels are half floats, in which integers to 255 are exact. This is for a compiler without
    a conversion to uint8 (TensorRT).
    """

    def __init__(self, model: Autoencoder, preprocessing: Preprocessing, to_bytes: bool = True) -> None:
        """Wraps the decoder of `model`."""
        super().__init__()
        self.model = model
        self.standardise = Standardise(preprocessing, model.config.patch_size)
        self.to_bytes = to_bytes

    def forward(self, latent: Tensor, restore_indices: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts every patch, and measures its squared error in standardised pixels (or in normalised ones)."""
        target = self.standardise(patches)
        pred = self.model.forward_decoder(latent, restore_indices)
        error = patch_loss(pred, target, norm_pix=self.model.config.norm_pix_loss)
        if self.model.config.norm_pix_loss:
            mean, std = patch_statistics(target)
            pred = pred * std + mean
        pixels = self.standardise.pixels(pred)
        return pixels.to(torch.uint8 if self.to_bytes else torch.float16), error
