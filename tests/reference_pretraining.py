"""The method's pre-training in PyTorch, of transformers' modules, in float64.

Images, texts and masked texts in; losses out. Written from the description of the
method and apart from the package, which is held against it: two passes of the text
tower, words guessed at all places, one cosine for each pair, nothing shared or fused.
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, ViTConfig, ViTModel
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

IGNORED = -100  # the label of a place at which no word is to be guessed


@dataclasses.dataclass(frozen=True)
class Method:
    """What a recipe leaves open.

    tied: words are guessed by a product with their embeddings. padding, special: what
    takes part in the maximum. temperature: a number, or "learned".
    """

    tied: bool = True
    padding: bool = False
    special: bool = True
    temperature: float | str = 1.0
    whole_words: bool = False


class Pretraining(nn.Module):
    """Two towers, a 1x1 convolution to one space on each, and BERT's head for words."""

    def __init__(self, image: ViTConfig, text: BertConfig, width: int, method: Method):
        super().__init__()
        self.method = method
        self.image = ViTModel(image, add_pooling_layer=False)
        self.text = BertModel(text, add_pooling_layer=False)
        self.image_projection = nn.Conv1d(image.hidden_size, width, 1)
        self.text_projection = nn.Conv1d(text.hidden_size, width, 1)
        self.transform = BertPredictionHeadTransform(text)
        self.decoder = nn.Linear(text.hidden_size, text.vocab_size)
        if method.tied:
            self.decoder.weight = self.text.embeddings.word_embeddings.weight
        if method.temperature == "learned":
            self.log_scale = nn.Parameter(torch.zeros(()))
        self.double()

    def read(self, tokens: torch.Tensor, pad: int) -> torch.Tensor:
        """(B, L) ids -> (B, L, D) features."""
        mask = (tokens != pad).long()
        return self.text(input_ids=tokens, attention_mask=mask).last_hidden_state

    def forward(self, images, tokens, masked, labels, *, pad, cls, sep) -> dict:
        """images: (B, H, W, 3) of 0 to 255. tokens, masked, labels: (B, L) ids."""
        pixels = (images.double() / 255 - 0.5) / 0.5
        seen = self.image(pixel_values=pixels.permute(0, 3, 1, 2)).last_hidden_state
        kept = torch.ones_like(tokens, dtype=torch.bool)
        if not self.method.padding:
            kept &= tokens != pad
        if not self.method.special:
            kept &= (tokens != cls) & (tokens != sep)
            seen = seen[:, 1:]
        image = self.image_projection(seen.transpose(1, 2)).max(dim=2).values
        read = self.text_projection(self.read(tokens, pad).transpose(1, 2))
        text = read.masked_fill(~kept[:, None], -torch.inf).max(dim=2).values

        cosines = functional.cosine_similarity(image[:, None], text[None], dim=2)
        logits = cosines / self.temperature()
        pairs = torch.arange(len(tokens))
        to_text = functional.cross_entropy(logits, pairs)
        to_image = functional.cross_entropy(logits.T, pairs)

        guesses = self.decoder(self.transform(self.read(masked, pad)))
        mlm = functional.cross_entropy(
            guesses.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        contrastive = (to_text + to_image) / 2
        return dict(total=contrastive + mlm, contrastive=contrastive, mlm=mlm)

    def temperature(self) -> torch.Tensor | float:
        """What cosines are divided by."""
        if self.method.temperature == "learned":
            return torch.exp(-self.log_scale)
        return self.method.temperature


def adamw(model: nn.Module, *, rate: float, warmup: int, total: int) -> tuple:
    """AdamW as BERT is trained, with its rate: up to `rate`, then in a line to 0."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "norm" in name.lower()
        (plain if spared else decayed).append(parameter)
    groups = [
        dict(params=plain, weight_decay=0.0),
        dict(params=decayed, weight_decay=0.01),
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (total - step) / (total - warmup)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share)
