"""The formulae of facebookresearch/mae (models_mae.py, models_vit.py) and timm's VisionTransformer, in plain torch.

They are written from the papers and from a state dict alone, as functions, and share no code with `model.nn`. With
timm 1.0.31 and random weights they agreed to 1e-5.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
EPS = 1e-6


def encode(state: State, images: Tensor, heads: int, kept: Tensor | None = None, norm: bool = True) -> Tensor:
    """Standardised images [B, 3, H, W] -> tokens, cls first, of all patches or of those `kept`, int64 [B, K]."""
    weight = state["patch_embed.proj.weight"]
    x = F.conv2d(images, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = x + state["pos_embed"][:, 1:]
    if kept is not None:
        x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
    x = torch.cat([(state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    x = _blocks(state, "blocks", x, heads)
    return layer_norm(state, "norm", x) if norm else x


def decode(state: State, latent: Tensor, heads: int, kept: Tensor) -> Tensor:
    """Tokens of cls and of the patches `kept`, [B, 1 + K, D] -> predictions of all patches [B, N, P].

    P is in upstream's order: row, column, channel.
    """
    seen = F.linear(latent, state["decoder_embed.weight"], state["decoder_embed.bias"])
    x = state["mask_token"].repeat(len(seen), state["decoder_pos_embed"].shape[1], 1)
    places = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)
    x = x.scatter(1, places[..., None].expand_as(seen), seen) + state["decoder_pos_embed"]
    x = layer_norm(state, "decoder_norm", _blocks(state, "decoder_blocks", x, heads))
    return F.linear(x, state["decoder_pred.weight"], state["decoder_pred.bias"])[:, 1:]


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], EPS)


def _blocks(state: State, prefix: str, x: Tensor, heads: int) -> Tensor:
    for n in range(len({name.split(".")[1] for name in state if name.startswith(f"{prefix}.")})):
        block = {name.removeprefix(f"{prefix}.{n}."): value for name, value in state.items()}
        h = layer_norm(block, "norm1", x)
        query, key, value = F.linear(h, block["attn.qkv.weight"], block.get("attn.qkv.bias")).chunk(3, dim=-1)
        scores = []
        for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in (query, key, value)), strict=True):
            scores.append((q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v)
        x = x + F.linear(torch.cat(scores, dim=-1), block["attn.proj.weight"], block["attn.proj.bias"])
        h = F.linear(layer_norm(block, "norm2", x), block["mlp.fc1.weight"], block["mlp.fc1.bias"])
        x = x + F.linear(F.gelu(h), block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return x
