"""The contract that every family of masked autoencoders keeps, and the objective that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import Loss, MAEConfig
from model.nn.losses import masked_loss

DECODER_PREFIXES = ("decoder", "mask_token")
"""The names of a decoder's tensors begin with these, in every family."""


class Autoencoder(nn.Module, ABC):
    """An encoder that sees the visible patches alone, and a decoder that predicts all patches.

    A patch is P = p * p * 3 numbers in the order row, column, channel. Beside each patch stands its index in the image,
    0 to N - 1. Every model that keeps this contract is trained, compiled and served alike.
    """

    def __init__(self, config: MAEConfig) -> None:
        """Keeps the sizes."""
        super().__init__()
        self.config = config

    @abstractmethod
    def forward_encoder(self, visible: Tensor, visible_indices: Tensor) -> Tensor:
        """Visible patches [B, K, P] and their indices, int [B, K] -> latent [B, 1 + K, D].

        The first vector stands for the whole image, the others for the visible patches, in the order of
        `visible_indices`.
        """

    @abstractmethod
    def forward_decoder(self, latent: Tensor, restore_indices: Tensor) -> Tensor:
        """Latent [B, 1 + K, D] and the token of each patch, int [B, N] -> pixels of every patch [B, N, P].

        `restore_indices` point into `[mask token, latent…]`: 0 is the mask token, 2 + k the k-th visible patch.
        """

    def pool(self, cls: Tensor, mean: Tensor) -> Tensor:
        """The latent's first vector [B, D] and the mean of the others [B, D] -> pooled vectors [B, 2, D]."""
        return torch.stack([cls, mean], dim=1)

    def forward(self, patches: Tensor, visible_indices: Tensor, loss: Loss = "mse") -> tuple[Tensor, Tensor, Tensor]:
        """Masks, encodes, decodes, and compares the prediction with the image.

        Args:
            patches: standardised pixels, [B, N, P].
            visible_indices: indices of the visible patches, int [B, K].
            loss: `mse` or `cosine`; per-patch pixel normalisation as the config says.

        Returns:
            The loss (a scalar), the prediction [B, N, P] and the mask [B, N] (1 = removed).
        """
        index = visible_indices.long()
        visible = torch.take_along_dim(patches, index[..., None], dim=1)  # [B, K, P]
        latent = self.forward_encoder(visible, visible_indices)
        restore_indices = torch.zeros(patches.shape[:2], dtype=torch.long, device=patches.device)
        restore_indices = restore_indices.scatter(
            1, index, torch.arange(2, index.shape[1] + 2, device=index.device).expand_as(index)
        )
        pred = self.forward_decoder(latent, restore_indices)
        mask = (restore_indices == 0).to(pred.dtype)
        return masked_loss(pred, patches, mask, loss, self.config.norm_pix_loss), pred, mask


def unfreeze(model: Autoencoder) -> None:
    """Makes every parameter trainable but sine-cosine tables, which stay fixed."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.config.positions == "learned" or not name.endswith("pos_embed"))


def gather_vectors(table: Tensor, indices: Tensor) -> Tensor:
    """Gathers vectors from each image's own table: [B, R, C], int [B, L] with values below R -> [B, L, C].

    All tables are laid below one another and read by `F.embedding`, the one gather that every compiler takes with
    dynamic shapes.
    """
    batch, count, width = table.shape
    start = torch.arange(batch, device=indices.device, dtype=indices.dtype) * count
    return F.embedding(indices + start[:, None], table.reshape(-1, width))
