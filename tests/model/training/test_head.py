from __future__ import annotations

import numpy as np
import torch
from scipy.special import softmax

from model.checkpoints.heads import Head
from model.checkpoints.native import HeadConfig
from model.training.head import LinearHead, fold_batch_norm


def test_the_batch_norm_is_folded_into_the_linear_layer() -> None:
    torch.manual_seed(0)
    features = torch.randn(256, 12) * torch.logspace(-2, 1, 12) + torch.linspace(-3, 3, 12)
    norm, linear = torch.nn.BatchNorm1d(12, eps=1e-6, affine=False), torch.nn.Linear(12, 5)
    for batch in features.split(32):
        norm(batch)  # running mean and variance
    head = LinearHead(12, 5, normalised=True)
    head.norm.load_state_dict(norm.state_dict())
    head.linear.load_state_dict(linear.state_dict())
    weight, bias = fold_batch_norm(head.state_dict())
    logits = linear(norm.eval()(features)).detach().numpy()
    np.testing.assert_allclose(features.numpy() @ weight.T + bias, logits, atol=1e-5)
    served = Head(HeadConfig(pool="mean", classes=tuple("abcde")), weight, bias)
    np.testing.assert_allclose(served.probabilities(features.numpy()), softmax(logits, axis=1), atol=1e-5)


def test_without_a_norm_the_layer_is_itself() -> None:
    head = LinearHead(12, 5, normalised=False)
    weight, bias = fold_batch_norm(head.state_dict())
    assert np.array_equal(weight, head.linear.weight.detach().numpy())
    assert np.array_equal(bias, head.linear.bias.detach().numpy())
