"""TensorBoard's events and pictures."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast.corruptions import corrupt
from dvae_fast.data import with_channels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dvae_fast.data import Dataset
    from dvae_fast.models import Autoencoder

__all__ = ["Board", "each_label", "reconstructions"]

_PICTURE_SECONDS = 15.0


@torch.no_grad()
def reconstructions(
    model: Autoencoder,
    x: Tensor,
    seed: int,
    context: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x, what the encoder is given of it (x̃, or x without corruption), and its reconstruction.

    Of what a mask leaves out the first two are NaN, and the last is what the model makes of the
    others.
    """
    place = next(model.parameters(), x).device
    x = x.to(place)
    context, mask = (None if t is None else t.to(place) for t in (context, mask))
    noisy = x if mask is None else x.masked_fill(~mask, 0)
    if model.corruption is not None:
        noisy = corrupt(noisy, model.corruption, seed=seed)
    means = model.reconstruct(noisy, context=context, mask=mask)
    if mask is not None:
        x, noisy = (t.masked_fill(~mask, math.nan) for t in (x, noisy))
    return x, noisy, means


def each_label(model: Autoencoder, n: int) -> Tensor | None:
    """The labels of n samples, as many of each class, in order; None of a model without."""
    if not model.context_size:
        return None
    device = next(model.parameters()).device
    return torch.arange(n, device=device) * model.context_size // n


class Board:
    """TensorBoard's events, or nothing where it is not wanted or not installed.

    A context manager, which closes them. Its thread writes them: what fails there is told by the
    next call here, and not by a traceback too.
    """

    def __init__(self, folder: Path, wanted: bool, epoch: int) -> None:
        self.writer: Any = None
        self.next_picture = 0.0
        self._excepthook = threading.excepthook
        if wanted and importlib.util.find_spec("tensorboard") is not None:
            with warnings.catch_warnings():  # its own dependencies' deprecations
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter

            # Whatever a crashed run wrote beyond its checkpoint is hidden.
            purge = epoch + 1 if epoch else None
            threading.excepthook = self._hook
            with self._optional():
                self.writer = SummaryWriter(str(folder), purge_step=purge)

    def _hook(self, args: threading.ExceptHookArgs) -> None:
        ours = type(args.thread).__module__.partition(".")[0] == "tensorboard"
        if not (ours and isinstance(args.exc_value, OSError)):
            self._excepthook(args)

    @contextlib.contextmanager
    def _optional(self) -> Iterator[None]:
        """What cannot be written is done without: a log must not end a run."""
        try:
            yield
        except OSError as error:
            self.writer = None
            warnings.warn(
                f"TensorBoard's events cannot be written ({error}); going on without them",
                RuntimeWarning,
                stacklevel=2,
            )

    def epoch(self, record: Mapping[str, float]) -> None:
        if self.writer is None:
            return
        step = int(record["epoch"])
        with self._optional():
            for tag, key in (
                ("bound/train", "train_bound"),
                ("bound/valid", "valid_bound"),
                ("gradient norm", "gradient_norm"),
                ("learning rate", "learning_rate"),
                ("examples per second", "examples_per_second"),
            ):
                self.writer.add_scalar(tag, record[key], step)

    def pictures(
        self,
        model: Autoencoder,
        data: Dataset,
        epoch: int,
        *,
        context: Tensor | None = None,
        last: bool = False,
    ) -> None:
        if self.writer is None or (time.monotonic() < self.next_picture and not last):
            return
        self.next_picture = time.monotonic() + _PICTURE_SECONDS
        if data.image_shape is None:  # a table is no picture
            return
        told = None if context is None else context[:8]
        x = data.evaluation("valid")[:8]
        rows = reconstructions(model, x, 0, told, data.observed(x))
        shape = (-1, *with_channels(data.image_shape))
        with self._optional():
            for tag, images in (
                ("samples", model.sample(64, seed=0, context=each_label(model, 64))),
                ("x, corrupted, reconstructed", torch.cat(rows)),
            ):
                shaded = data.shaded(images).nan_to_num(0.5).reshape(shape)
                # Of other numbers of channels, the first.
                shown = shaded if shaded.shape[1] in (1, 3) else shaded[:, :1]
                self.writer.add_images(tag, shown, epoch)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            with self._optional():
                self.writer.close()
        if threading.excepthook == self._hook:
            threading.excepthook = self._excepthook
