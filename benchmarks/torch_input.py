"""JPEG files and token ids to batches, as an expert reads them with PyTorch.

On PIL and torch alone: the workers of a DataLoader import this and no JAX.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image


class Pictures(torch.utils.data.Dataset):
    """Pictures of the training size as uint8, with the ids of their captions."""

    def __init__(self, files: Sequence[str], ids: Sequence[np.ndarray]) -> None:
        """files: JPEGs. ids: one caption's each, without padding."""
        self.files, self.ids = list(files), list(ids)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        """(H, W, 3) uint8 and (L,) ids."""
        with Image.open(self.files[index]) as file:
            pixels = np.array(file.convert("RGB"))
        return torch.from_numpy(pixels), self.ids[index]


class Collate:
    """Samples -> (B, H, W, 3) uint8 and (B, L) int64, padded to one of few lengths."""

    def __init__(self, lengths: Sequence[int], pad: int) -> None:
        self.lengths, self.pad = sorted(lengths), pad

    def __call__(self, samples: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, ids = zip(*samples, strict=True)
        longest = max(map(len, ids))
        length = next(n for n in self.lengths if n >= longest)
        table = np.full((len(ids), length), self.pad, np.int64)
        for row, values in zip(table, ids, strict=True):
            row[: len(values)] = values
        return torch.stack(pixels), torch.from_numpy(table)


class Endless(torch.utils.data.Sampler):
    """Every index once an epoch, in a new order each; epochs without a gap."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        epoch = 0
        while True:
            yield from np.random.default_rng(epoch).permutation(self.count).tolist()
            epoch += 1


def loader(
    data: Pictures, collate: Callable, *, batch: int, workers: int, pinned: bool
) -> torch.utils.data.DataLoader:
    """An endless loader of shuffled batches. pinned: for copies to a GPU."""
    return torch.utils.data.DataLoader(
        data,
        batch_size=batch,
        sampler=Endless(len(data)),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pinned,
        # jax has threads, with which a process must not be forked
        multiprocessing_context="forkserver" if workers else None,
    )
