"""The masked autoencoder (He et al. 2021) as code, under the key names of facebookresearch/mae (models_mae.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import MAEConfig
from model.nn.base import Autoencoder, gather_vectors


class MaskedAutoencoder(Autoencoder):
    """An encoder over the visible patches, and a light decoder over all patches.

    It takes patches instead of images, so that the encoder computes nothing for removed ones. The tensors' names and
    shapes are upstream's, `patch_embed.proj` included.
    """

    pos_embed: Tensor
    decoder_pos_embed: Tensor
    norm: nn.LayerNorm
    fc_norm: nn.LayerNorm

    def __init__(self, config: MAEConfig) -> None:
        """Builds the model with upstream's initialisation, and the decoder only if the config has one."""
        super().__init__(config)
        c = config
        self.patch_embed = PatchEmbed(c.patch_size, c.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim))
        self._register_positions("pos_embed", c.embed_dim)
        self.blocks = nn.ModuleList(
            Block(c.embed_dim, c.num_heads, c.mlp_ratio, c.qkv_bias, c.layer_norm_eps) for _ in range(c.depth)
        )
        last_norm = "norm" if c.final_norm == "tokens" else "fc_norm"  # upstream's names, models_vit.py
        self.add_module(last_norm, nn.LayerNorm(c.embed_dim, eps=c.layer_norm_eps))
        if c.has_decoder:
            width = c.decoder_embed_dim
            self.decoder_embed = nn.Linear(c.embed_dim, width)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            self._register_positions("decoder_pos_embed", width)
            self.decoder_blocks = nn.ModuleList(
                Block(width, c.decoder_num_heads, c.decoder_mlp_ratio, c.qkv_bias, c.layer_norm_eps)
                for _ in range(c.decoder_depth)
            )
            self.decoder_norm = nn.LayerNorm(width, eps=c.layer_norm_eps)
            self.decoder_pred = nn.Linear(width, c.patch_dim)
        self._initialize_weights()

    def forward_encoder(self, visible: Tensor, visible_indices: Tensor, present: Tensor | None = None) -> Tensor:
        """Visible patches [B, K, P] and their indices, int [B, K] -> latent [B, 1 + K, D]: cls first.

        The latent is normed, unless the config says that the norm comes after the pooling.

        `present`, bool [B, K], is False for padding, where an image has fewer visible patches than others of its
        batch. Nothing attends to padding.
        """
        x = self.patch_embed(visible) + F.embedding(visible_indices, self.pos_embed[0, 1:])  # [B, K, D]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1)  # [B, 1 + K, D]
        attn_mask = None if present is None else F.pad(present, (1, 0), value=True)[:, None, None]  # [B, 1, 1, 1 + K]
        for block in self.blocks:
            x = block(x, attn_mask)
        latent: Tensor = self.norm(x) if self.config.final_norm == "tokens" else x
        return latent

    def pool(self, cls: Tensor, mean: Tensor) -> Tensor:
        """See `Autoencoder.pool`: with `fc_norm`, which norms the mean, the mean also takes the place of cls."""
        if self.config.final_norm == "pooled":
            mean = self.fc_norm(mean)
            cls = mean
        return super().pool(cls, mean)

    def forward_decoder(self, latent: Tensor, restore_indices: Tensor) -> Tensor:
        """Latent [B, 1 + K, D], restore indices int [B, N] -> pixels of every patch [B, N, P]."""
        x = self.decoder_embed(latent)  # [B, 1 + K, Dd]
        table = torch.cat([self.mask_token.expand(x.shape[0], -1, -1), x], dim=1)  # [B, 2 + K, Dd]
        x = torch.cat([x[:, :1], gather_vectors(table, restore_indices)], dim=1)  # [B, 1 + N, Dd]
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        pred: Tensor = self.decoder_pred(self.decoder_norm(x))
        return pred[:, 1:]

    def _register_positions(self, name: str, width: int) -> None:
        fixed = self.config.positions == "sincos"
        table = (
            sincos_positions(width, self.config.grid) if fixed else torch.zeros(1, 1 + self.config.num_patches, width)
        )
        self.register_parameter(name, nn.Parameter(table, requires_grad=not fixed))

    def _initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.embed_dim, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        if self.config.has_decoder:
            nn.init.normal_(self.mask_token, std=0.02)
        if self.config.positions == "learned":
            for name, parameter in self.named_parameters():
                if name.endswith("pos_embed"):
                    nn.init.trunc_normal_(parameter, std=0.02)


class PatchEmbed(nn.Module):
    """A linear map of each patch; its weight has upstream's convolution layout [D, 3, p, p]."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        """Makes the p x p convolution of stride p."""
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, K, P] -> [B, K, D]."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, P]: a patch's order is row, column, channel
        return F.linear(patches, weight, self.proj.bias)


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2020)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, eps: float) -> None:
        """Makes attention and a two-layer perceptron, each with a residual."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; `attn_mask`, bool [B, 1, 1, L], is True where a token may be attended to."""
        x = x + self.attn(self.norm1(x), attn_mask)
        x = x + self.mlp(self.norm2(x))
        return x


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        """Splits `dim` over `num_heads`."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; `attn_mask`, bool [B, 1, 1, L], is True where a token may be attended to."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, L, D / H] each
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        x = self.proj(x.transpose(1, 2).reshape(batch, length, dim))
        return x


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Makes layers `dim` -> `hidden` -> `dim`."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = self.fc2(F.gelu(self.fc1(x)))
        return x


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images [B, H, W, 3] -> patches [B, N, P], row-major, each in the order row, column, channel."""
    batch, height, width, channels = images.shape
    p = patch_size
    x = images.reshape(batch, height // p, p, width // p, p, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Patches [B, N, P] of a square -> images [B, H, W, 3]."""
    batch, count, _ = patches.shape
    grid, p = round(count**0.5), patch_size
    x = patches.reshape(batch, grid, grid, p, p, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, grid * p, grid * p, -1)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine positions [1, 1 + N, width], zeros for cls (upstream util/pos_embed.py: columns first)."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    along = torch.arange(grid, dtype=torch.float64)[:, None] * omega  # [grid, width / 4]
    line = torch.cat([along.sin(), along.cos()], dim=1)  # [grid, width / 2]
    columns = line[None].expand(grid, -1, -1)
    rows = line[:, None].expand(-1, grid, -1)
    table = torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width)
    return torch.cat([torch.zeros(1, 1, width, dtype=torch.float64), table], dim=1).float()
