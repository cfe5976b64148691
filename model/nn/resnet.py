"""A convolutional masked autoencoder: a residual network (He et al. 2015) behind the contract of the ViT."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import STEM_STRIDE, MAEConfig
from model.nn.base import Autoencoder, gather_vectors
from model.nn.vit import patchify, unpatchify


class ConvMaskedAutoencoder(Autoencoder):
    """A residual encoder over an image without its removed patches, and a light upsampling decoder.

    This is the simplest form in the literature: removed patches are zero, which after standardisation is the mean
    colour (context encoders, Pathak et al. 2016), and a mask token stands for them in the decoder. Features at removed
    positions are set to zero again after every block, so that depth does not blur the shape of the mask. SparK (Tian et
    al. 2023) and ConvNeXt V2 (Woo et al. 2023) do better with sparse convolutions, which skip removed positions and so
    save their time too. Here every position is computed, removed or not.

    The unit of masking is the encoder's stride, so that a patch is one position of the last feature map. Normalisation
    is over the channels of each position alone. Statistics over the batch would make an image's vector depend on the
    other images, and statistics over space would depend on how many patches are removed.
    """

    def __init__(self, config: MAEConfig) -> None:
        """Builds the model with He et al.'s initialisation (2015), and the decoder only if the config has one."""
        super().__init__(config)
        c, eps = config, config.layer_norm_eps
        widths = [width for width, count in c.stages for _ in range(count)]
        # the first block of each stage but the first halves the resolution
        halves = [block == 0 and stage > 0 for stage, (_, count) in enumerate(c.stages) for block in range(count)]
        in_widths = [widths[0], *widths[:-1]]
        self.stem = nn.Conv2d(3, widths[0], kernel_size=STEM_STRIDE, stride=STEM_STRIDE)
        self.stem_norm = ChannelNorm(widths[0], eps)
        self.blocks = nn.ModuleList(
            ResidualBlock(in_width, width, 2 if halve else 1, eps)
            for in_width, width, halve in zip(in_widths, widths, halves, strict=True)
        )
        self.norm = nn.LayerNorm(c.embed_dim, eps=eps)
        if c.has_decoder:
            width = c.decoder_embed_dim
            self.decoder_embed = nn.Linear(c.embed_dim, width)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            self.decoder_blocks = nn.ModuleList(ResidualBlock(width, width, 1, eps) for _ in range(c.decoder_depth))
            self.decoder_ups = nn.ModuleList(
                Upsampling(width // 2**step, width // 2 ** (step + 1)) for step in range(len(c.stages) - 1)
            )
            self.decoder_pred = nn.Conv2d(width // 2 ** (len(c.stages) - 1), STEM_STRIDE**2 * 3, kernel_size=1)
        self._initialize_weights()

    def forward_encoder(self, visible: Tensor, visible_indices: Tensor) -> Tensor:
        """Visible patches [B, K, P] and their indices, int [B, K] -> latent [B, 1 + K, D], normed.

        There is no cls token: the first vector is the mean of the visible features.
        """
        c = self.config
        source_indices = _source_indices(visible_indices, c.num_patches)  # [B, N]
        patches = gather_vectors(F.pad(visible, (0, 0, 1, 0)), source_indices)  # [B, N, P], zeros where removed
        x = unpatchify(patches, c.patch_size).permute(0, 3, 1, 2)  # [B, 3, H, W]
        visible_mask = (source_indices > 0).to(x.dtype).reshape(-1, 1, c.grid, c.grid)
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x)  # [B, C, H / s, W / s]
            x = x * F.interpolate(visible_mask, scale_factor=x.shape[-1] // c.grid, mode="nearest")
        features = gather_vectors(x.flatten(2).transpose(1, 2), visible_indices)  # [B, K, D]
        features = self.norm(features)
        return torch.cat([features.mean(dim=1, keepdim=True), features], dim=1)

    def forward_decoder(self, latent: Tensor, restore_indices: Tensor) -> Tensor:
        """Latent [B, 1 + K, D], int [B, N] -> pixels of every patch [B, N, P]; see `Autoencoder.forward_decoder`."""
        c = self.config
        x = self.decoder_embed(latent)  # [B, 1 + K, Dd]
        table = torch.cat([self.mask_token.expand(x.shape[0], -1, -1), x], dim=1)  # [B, 2 + K, Dd]
        x = gather_vectors(table, restore_indices)  # [B, N, Dd]
        x = x.transpose(1, 2).reshape(-1, c.decoder_embed_dim, c.grid, c.grid)
        for block in self.decoder_blocks:
            x = block(x)
        for up in self.decoder_ups:
            x = up(x)  # [B, Dd / 2, 2 H, 2 W]
        x = self.decoder_pred(x)  # [B, 4 * 4 * 3, S / 4, S / 4]: a cell's pixels in the order row, column, channel
        cells = x.flatten(2).transpose(1, 2)  # [B, (S / 4)^2, 48]
        return patchify(unpatchify(cells, STEM_STRIDE), c.patch_size)

    def _initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.config.has_decoder:
            nn.init.normal_(self.mask_token, std=0.02)
            nn.init.normal_(self.decoder_pred.weight, std=0.02)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2015, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, eps: float) -> None:
        """Makes the layers; the shortcut is a 1 x 1 convolution where shapes differ."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = ChannelNorm(out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = ChannelNorm(out_channels, eps)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Upsampling(nn.Module):
    """Doubles the resolution: nearest neighbours, then a 3 x 3 convolution (Odena et al. 2016).

    There is no norm: over so few channels it would remove the brightness of each position.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Makes the convolution."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2 H, 2 W]."""
        return F.relu(self.conv(F.interpolate(x, scale_factor=2, mode="nearest")))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position (as in ConvNeXt, Liu et al. 2022)."""

    def __init__(self, channels: int, eps: float) -> None:
        """Makes one scale and one shift per channel."""
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _source_indices(visible_indices: Tensor, num_patches: int) -> Tensor:
    """Visible indices int [B, K] -> [B, N]: 0 for a removed patch, 1 + k for the k-th visible patch.

    It is computed by a comparison and a sum, since not every compiler converts scattering with dynamic shapes.
    """
    patches = torch.arange(num_patches, device=visible_indices.device, dtype=visible_indices.dtype)
    matches = (visible_indices[:, :, None] == patches).to(visible_indices.dtype)  # [B, K, N]
    order = torch.arange(1, visible_indices.shape[1] + 1, device=visible_indices.device, dtype=visible_indices.dtype)
    return (matches * order[:, None]).sum(dim=1, dtype=visible_indices.dtype)
