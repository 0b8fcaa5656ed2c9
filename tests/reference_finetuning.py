"""The method's fine-tuning in PyTorch, from the equations, in float64.

Parameters by path, pictures and texts in; each loss by name out. A kernel multiplies from
the right; all else is PyTorch's own: attention, norms, cosines, cross-entropy.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Network:
    """Two towers, PGU, classifiers and the encoder that crosses.

    p: parameters by path. layers, heads: of the
    towers. part_layers, part_heads: of PGU.
    cross_heads: of the interaction. prefix: tokens of the image before the first patch.
    """

    p: Mapping[str, torch.Tensor]
    patch: tuple[int, int]
    prefix: int
    pad: int
    layers: int = 1
    heads: int = 2
    part_layers: int = 2
    part_heads: int = 2
    cross_heads: int = 2

    def dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.p[f"{name}/kernel"] + self.p[f"{name}/bias"]

    def norm(self, name: str, x: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
        scale, bias = self.p[f"{name}/scale"], self.p[f"{name}/bias"]
        return functional.layer_norm(x, x.shape[-1:], scale, bias, eps)

    def mlp(self, name: str, x: torch.Tensor, activation) -> torch.Tensor:
        return self.dense(f"{name}/fc2", activation(self.dense(f"{name}/fc1", x)))

    def attention(self, name, x, tokens, heads, real=None) -> torch.Tensor:
        """x: (B, Q, D) reads tokens (B, S, D), of which `real` (B, S) are there."""

        def split(part, y):  # -> (B, A, S, K)
            return (
                self.dense(f"{name}/{part}", y)
                .unflatten(-1, (heads, -1))
                .transpose(1, 2)
            )

        q, k, v = split("query", x), split("key", tokens), split("value", tokens)
        mask = None if real is None else real[:, None, None, :]
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.dense(f"{name}/out", read.transpose(1, 2).flatten(2))

    def see(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) of 0 to 255 -> (B, N, D)."""
        x = (images.double() / 255 - 0.5) / 0.5
        h, w = self.patch
        x = x.unfold(1, h, h).unfold(2, w, w)  # -> (B, rows, columns, 3, h, w)
        x = x.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)
        x = self.dense("image/patch_embedding", x)
        first = ("class_token", "distillation_token")[: self.prefix]
        first = [self.p[f"image/{name}"].expand(len(x), 1, -1) for name in first]
        x = torch.cat([*first, x], 1) + self.p["image/position_embedding"]
        for i in range(self.layers):
            block = f"image/block_{i}"
            y = self.norm(f"{block}/norm1", x)
            x = x + self.attention(f"{block}/attention", y, y, self.heads)
            y = self.norm(f"{block}/norm2", x)
            x = x + self.mlp(f"{block}/mlp", y, functional.gelu)
        return self.norm("image/norm", x)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L) ids -> (B, L, D). Padding does not train its embedding."""
        table = self.p["text/token_embedding/embedding"]
        x = functional.embedding(tokens, table, padding_idx=self.pad)
        x = x + self.p["text/position_embedding/embedding"][: tokens.shape[1]]
        x = x + self.p["text/type_embedding/embedding"][0]
        x, real = self.norm("text/embedding_norm", x), tokens != self.pad
        for i in range(self.layers):
            block = f"text/block_{i}"
            y = self.attention(f"{block}/attention", x, x, self.heads, real)
            x = self.norm(f"{block}/attention_norm", x + y)
            y = self.mlp(f"{block}/mlp", x, functional.gelu)
            x = self.norm(f"{block}/mlp_norm", x + y)
        return x

    def parts(self, tokens: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """PGU: (B, S, D) -> (B, parts, F)."""
        kernels = self.p["pgu/part_projection"]
        x = self.p["pgu/queries"].expand(len(tokens), -1, -1)
        for i in range(self.part_layers):
            block = f"pgu/block_{i}"
            y = self.norm(f"{block}/norm1", x, 1e-5)
            x = x + self.attention(
                f"{block}/attention", y, tokens, self.part_heads, real
            )
            y = self.norm(f"{block}/norm2", x, 1e-5)
            x = x + self.mlp(f"{block}/mlp", y, functional.relu)
        x = self.norm("pgu/norm", x, 1e-5)
        return torch.stack([x[:, i] @ kernel for i, kernel in enumerate(kernels)], 1)

    def cross(self, text, image, real) -> torch.Tensor:
        """The interaction encoder: (B, L, P) reads (B, N, P) -> (B, L, P)."""
        name, heads = "interaction", self.cross_heads
        text = self.norm(f"{name}/text_norm", text, 1e-5)
        image = self.norm(f"{name}/image_norm", image, 1e-5)
        x = self.attention(f"{name}/cross_attention", text, image, heads)
        block = f"{name}/block_0"
        y = self.norm(f"{block}/norm1", x, 1e-5)
        x = x + self.attention(f"{block}/attention", y, y, heads, real)
        y = self.norm(f"{block}/norm2", x, 1e-5)
        x = x + self.mlp(f"{block}/mlp", y, quick_gelu)
        return self.norm(f"{name}/norm", x, 1e-5)

    def guess(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """BERT's head for words: (..., D) -> (..., V)."""
        x = self.norm(f"{name}/norm", functional.gelu(self.dense(f"{name}/dense", x)))
        tied = self.p["text/token_embedding/embedding"].T
        return x @ self.p.get(f"{name}/kernel", tied) + self.p[f"{name}/bias"]


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def cosines(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """(B, P), (B, P) -> (B, B), images down."""
    return functional.cosine_similarity(image[:, None], text[None], dim=2)


def candidates(cosines: torch.Tensor, ids: torch.Tensor, margin: float) -> tuple:
    """Semi-hard negatives: (B, B) each, texts for an image, and images for a text."""
    right, other = cosines.diagonal(), ids[:, None] != ids[None]
    hinges = margin + cosines - right[:, None], margin + cosines.T - right[:, None]
    return tuple(other & (hinge > 0) & (hinge < margin) for hinge in hinges)


def ranking(cosines: torch.Tensor, drawn: torch.Tensor, margin: float) -> torch.Tensor:
    """The sum of the hinges margin + negative - positive over all anchors that drew.

    drawn: (B, B), how often image i and text j were drawn as a negative, by i or by j;
    on the diagonal, less how many of the two anchors drew one.
    """
    return margin * (drawn - drawn.diag().diag()).sum() + (drawn * cosines).sum()


def sdm(cosines: torch.Tensor, ids: torch.Tensor, scale, eps=1e-8) -> torch.Tensor:
    """KL(p || q) of each image's texts and each text's images, meant and added."""
    same = (ids[:, None] == ids[None]).double()
    loss = 0.0
    for logits in (scale * cosines, scale * cosines.T):
        p = logits.softmax(1)
        q = same / same.sum(1, keepdim=True)
        loss = loss + (p * (p / (q + eps)).log()).sum(1).mean()
    return loss


def infonce(cosines: torch.Tensor, scale) -> torch.Tensor:
    """Cross-entropy of each row's and each column's own pair, averaged."""
    pairs = torch.arange(len(cosines))
    ways = (scale * cosines, scale * cosines.T)
    return sum(functional.cross_entropy(logits, pairs) for logits in ways) / 2
