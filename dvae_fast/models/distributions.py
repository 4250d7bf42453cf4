"""q(z|x) as an object with `rsample` and `log_prob`: torch's, a flow, or one of one's own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import functional
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import generator_seed, seed_tensor, torch_seeded
from dvae_fast.functional._autograd import without_autocast
from dvae_fast.models.priors import standard_normal_log_prob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Unpack

    from dvae_fast._seeds import First

__all__ = ["Sampled", "is_distribution", "torch_seed"]

# Draws that a mean is made of where none is known.
_DRAWS = 100


def is_distribution(thing: Any) -> bool:
    """Whether it can be drawn from, and has a density."""
    draws = callable(getattr(thing, "rsample", None)) or callable(getattr(thing, "sample", None))
    return not isinstance(thing, Tensor) and draws and callable(getattr(thing, "log_prob", None))


@contextmanager
def torch_seed(key: Tensor, example: int = 0, copy: int = 0) -> Iterator[int]:
    """Torch's own generators start at a number made of these, which is given; and go on where they
    were afterwards. It is below 2**32, so that NumPy, and who seeds it too, takes it."""
    seed = generator_seed(key, example, copy) % 2**32
    with torch_seeded(seed, key.device):
        yield seed


class Sampled:
    """The posteriors of B examples, whatever they are.

    Their draws are torch's: a function of the seed, of where they begin, and of how many are drawn
    at once.

    Args:
        q: with ``rsample((k,))`` → (k, B, Z), and ``log_prob(z)`` → (k, B), or (k, B, Z) of latents
            that are independent. Without ``rsample``, ``sample`` is taken where no gradient is
            asked for.
        examples: B.
    """

    def __init__(self, q: Any, examples: int) -> None:
        self.q, self.examples = q, examples

    def sample(
        self, k: int, seed: int | Tensor | None = None, **first: Unpack[First]
    ) -> tuple[Tensor, Tensor]:
        """z (B, K, Z), and log N(z; 0, I) − log q(z), (B, K); differentiable.

        Raises:
            TypeError, ValueError: if there is no ``rsample``, or shapes are others.
        """
        z, log_q = self._drawn(k, seed, first)
        with without_autocast(z):
            wide = z.to(accumulation_dtype(z.dtype))
            log_ratio = standard_normal_log_prob(wide) - log_q.to(wide.dtype)
        return z.transpose(0, 1), log_ratio.transpose(0, 1)

    def _drawn(self, k: int, seed: Any, first: First) -> tuple[Tensor, Tensor]:
        """z (k, B, Z) and its log q (k, B)."""
        q, name = self.q, type(self.q).__name__
        able = getattr(q, "has_rsample", callable(getattr(q, "rsample", None)))
        if not able and torch.is_grad_enabled():
            raise TypeError(
                f"encoder must return a distribution with rsample, for a gradient, got {name}"
            )
        key = seed if isinstance(seed, Tensor) else seed_tensor(seed, torch.device("cpu"))
        with torch_seed(key, first.get("first_example", 0), first.get("first_sample", 0)):
            z = (q.rsample if able else q.sample)(torch.Size((k,)))
        if not isinstance(z, Tensor) or z.dim() != 3 or z.shape[:2] != (k, self.examples):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                "encoder's distribution must draw shape (k, B, Z) with k, B = "
                f"{(k, self.examples)}, got {got} from {name}"
            )
        log_q = q.log_prob(z)  # of what was drawn itself: a flow may remember where it came from
        if log_q.shape == z.shape:
            log_q = log_q.sum(-1)
        if log_q.shape != z.shape[:2]:
            raise ValueError(
                f"encoder's distribution must have log_prob of shape (k, B) = {(*z.shape[:2],)}, "
                f"got {tuple(log_q.shape)} from {name}"
            )
        return z, log_q

    def middle(self) -> Tensor:
        """The mean, (B, Z); of a flow that has none, where it takes its base's; else of draws."""
        q = self.q
        try:
            mean = q.mean
            return mean if isinstance(mean, Tensor) else cast("Tensor", mean())
        except (AttributeError, NotImplementedError, TypeError):
            pass
        try:
            mean = q.base_dist.mean
            for transform in q.transforms:
                mean = transform(mean)
            return cast("Tensor", mean)
        except (AttributeError, NotImplementedError):
            with torch.no_grad():
                return self._drawn(_DRAWS, 0, {})[0].mean(0)


@torch.no_grad()
def draw_bernoulli(
    logits: Tensor, k: int, seed: int | Tensor | None, **first: Unpack[First]
) -> Tensor:
    """K draws of Π Bernoulli(σ(logits)): (*L, B, Z) → (*L, B, K, Z), of 0 and 1.

    From the normals ε of `sample_latent`: 1 where ε < Φ⁻¹(σ(l)).
    """
    zero = torch.zeros_like(logits)
    noise, _ = functional.sample_latent(zero, zero, k, seed, **first)
    # From the smaller tail: σ(l) near 1 has few digits.
    tail: Tensor = torch.special.ndtri(torch.sigmoid(-logits.abs()))
    return (noise < (-logits.sign() * tail).unsqueeze(-2)).to(logits.dtype)
