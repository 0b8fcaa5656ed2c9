"""What an expert changes in PyTorch's modules to train on a CPU.

Dense layers by oneDNN in float32, through a private operator of PyTorch's (torch 2.13's
MKL keeps to AVX2 on AMD: 110 against 240 GFLOP/s a core), and dropout from 16 random bits
an element, as ours (torch's own takes a seventh of a step's time).
"""

import torch
from torch import nn


def _onednn(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None):
    """x @ kernel.T + bias, for a CPU: the product that torch.compile has at inference."""
    return torch.ops.mkldnn._linear_pointwise(x, kernel, bias, "none", [], "")


class OneDnnProduct(torch.autograd.Function):
    """F.linear in float32 with all three of its products by oneDNN."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor):
        ctx.save_for_backward(x, kernel)
        return _onednn(x, kernel, bias)

    @staticmethod
    def backward(ctx, g: torch.Tensor):
        x, kernel = ctx.saved_tensors
        rows, inputs = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = (
            _onednn(rows, kernel.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        )
        return dx, _onednn(rows.t(), inputs.t()), rows.sum(0)


class OneDnnLinear(nn.Linear):
    """nn.Linear by oneDNN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OneDnnProduct.apply(x, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Gives every dense layer of a `reference_torch.Model`, and the tied head, oneDNN."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
    model.product = OneDnnProduct.apply


class Bits16Dropout(nn.Dropout):
    """Dropout at the nearest multiple of 2^-16, from a quarter of a word an element."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        keep = round((1 - self.p) * 65536)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(
            -(2**63), None
        )
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # -32768 .. 32767
        return x * torch.where(bits < keep - 32768, 65536 / keep, 0.0).to(x.dtype)


def use_cheap_dropout(model: nn.Module) -> None:
    """Gives every dropout layer of a model 16 bits an element."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Bits16Dropout
