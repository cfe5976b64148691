"""Checkpoints as other people's runs write them, and the formula that a loaded one must compute.

The formula (tests/support/vit_formula.py) shares no code with the model.
"""

from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.checkpoint import Checkpoint
from model.nn.vit import patchify
from tests.support.vit_formula import decode, encode

State = dict[str, Tensor]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
KEPT = torch.tensor([[0, 5, 9, 15], [2, 3, 8, 11]])


def require_formula(loaded: Checkpoint, state: State, heads: int, decoder_heads: int | None = None) -> None:
    """Asserts that tokens and predictions are those of the formula for `state`, which is under upstream's names."""
    model, patches = loaded.build(), patchify(IMAGES.permute(0, 2, 3, 1), 8)
    latent = model.forward_encoder(patches, torch.arange(16).expand(2, -1))
    torch.testing.assert_close(latent, encode(state, IMAGES, heads), atol=1e-4, rtol=0)
    assert loaded.config.has_decoder == (decoder_heads is not None)
    if decoder_heads is not None:
        expected = decode(state, encode(state, IMAGES, heads, KEPT), decoder_heads, KEPT)
        torch.testing.assert_close(model(patches, KEPT)[1], expected, atol=1e-4, rtol=0)


def torch_file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def noted(checkpoint: Checkpoint, words: str) -> bool:
    return any(words in note for note in checkpoint.notes)


def in_mmpretrain(name: str) -> str:
    """mmpretrain's name for one of upstream's."""
    if name.startswith(("decoder", "mask_token")):
        module = "neck."
    else:
        module, name = "backbone.", name.replace("blocks.", "layers.")
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        name = f"ln1.{name[5:]}" if name.startswith("norm.") else name
    for ours, theirs in ((".norm", ".ln"), (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1.")):
        name = name.replace(ours, theirs)
    return module + name
