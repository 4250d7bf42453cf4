"""Cases of the one-pass loss, each against the reference in float64."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dvae_fast import reference

#: outside, analytic, drops_score, doubly, kl_weight
BOUNDS = {
    "elbo": (True, False, False, False, 1.0),
    "elbo, weighted": (True, False, False, False, 0.3),
    "elbo, stl": (True, False, True, False, 0.5),
    "elbo_kl": (True, True, False, False, 0.7),
    "iwae": (False, False, False, False, 1.0),
    "iwae, stl": (False, False, True, False, 1.0),
    "iwae, dreg": (False, False, True, True, 1.0),
}
KINDS = ("identity", "salt_and_pepper", "gaussian", "masking", "bit_flip")

#: Largest error over the largest element of each result.
RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-11}


class Sizes(NamedTuple):
    """Examples, corruptions, samples, data, latents, and hidden layers of both networks."""

    b: int
    m: int
    k: int
    d: int
    z: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]


#: Rows that are not whole groups, tiles of several parts, more samples than a part has rows, layers
#: of one panel and less, of several and a bit, and none.
SIZES = (
    Sizes(7, 3, 5, 19, 3, (9, 6), (5, 8)),
    Sizes(1, 1, 1, 1, 1, (), ()),
    Sizes(67, 2, 3, 33, 2, (40,), (16, 31)),
    Sizes(3, 1, 131, 65, 4, (), (70,)),
    Sizes(131, 1, 2, 10, 5, (33, 17), ()),
)


def make(
    sizes: Sizes, kind: str, bound: str, activation: str, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    """Arguments of the operator. Every third layer is without a bias."""
    b, m, k, d, z, encoder, decoder = sizes
    g = torch.Generator().manual_seed(b + 10 * d + len(kind))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    def layers(*widths: int) -> list[Tensor]:
        pairs = enumerate(itertools.pairwise(widths))
        return [
            t
            for n, (i, o) in pairs
            for t in (normal(o, i) * i**-0.5, 0.3 * normal(o if n % 3 != 1 else 0))
        ]

    rate = 0.1 + 0.5 * torch.rand(d if d % 2 else 1, generator=g)
    salt = torch.tensor([0.3]) if kind == "salt_and_pepper" else None
    x = torch.rand(b, d, generator=g).round().to(dtype)
    return (
        x, kind, rate.to(dtype) if kind == "gaussian" else rate, salt, torch.tensor([5]), m, k, 3,
        layers(d, *encoder, 2 * z), layers(z, *decoder, d), activation, "bernoulli", *BOUNDS[bound],
    )  # fmt: skip


def cases() -> list[tuple[str, tuple[Any, ...]]]:
    """Each size with each bound, kinds and activations in turn."""
    every = itertools.product(SIZES, BOUNDS)
    return [
        (f"{tuple(sizes)}, {bound}, {kind}, {activation}", (sizes, kind, bound, activation))
        for (sizes, bound), kind, activation in zip(
            every, itertools.cycle(KINDS), itertools.cycle(("softplus", "relu", "tanh"))
        )
    ]


def run(args: tuple[Any, ...], *, bfloat16: bool = False) -> tuple[Tensor, ...]:
    """The loss, then the gradients."""
    loss, gradients = torch.ops.dvae_fast.mlp_loss(*args, bfloat16)
    return loss, *gradients


def expected(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    def wide(a: Any) -> Any:
        if isinstance(a, list):
            return [wide(t) for t in a]
        return a.double() if isinstance(a, Tensor) and a.is_floating_point() else a

    rates = args[2] if args[1] != "gaussian" else wide(args[2])  # thresholds are of float32
    head = (wide(args[0]), args[1], rates, args[3])
    loss, gradients = reference.mlp_loss(*head, *map(wide, args[4:]))
    return loss, *gradients


def assert_is(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], name: str = "") -> None:
    assert len(got) == len(wanted)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape, (name, i)
        if a.numel():
            error = float((a.double() - b).abs().max() / (b.abs().max() + 1e-2))
            assert error <= RELATIVE[got[0].dtype], (name, i, error)


def assert_is_rounded(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], name: str = "") -> None:
    """To what products of bfloat16 leave: where a ReLU's input is near 0 it may go the other way. A
    row that was left out would be seen."""
    assert len(got) == len(wanted)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.dtype == torch.float32
        if a.numel():
            error = float((a.double() - b).norm() / (b.norm() + 1e-3))
            assert error <= (0.06 if i else 0.005), (name, i, error)
