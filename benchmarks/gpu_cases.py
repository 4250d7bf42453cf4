"""The cases of `gpu.py`: what is called, by ours and by its rivals, on operands of what size.

Operands of the operators are far larger than the second-level cache, so nothing is left in it from
the call before; the cases named "small" are a training step's, where launching is what costs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import rivals
import torch
import torch.nn.functional as F
from gpu_bench import AGREEMENT, assert_agrees
from torch import Tensor, nn

import dvae_fast
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models import DIWAE, IWAE
from dvae_fast.training.graphed import GraphedStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_bench import Bench, Calls

    from dvae_fast import LikelihoodEstimate

RATE, SALT, D, Z, HIDDEN = 0.1, 0.5, 784, 50, (200, 200)
FP32, BF16 = torch.float32, torch.bfloat16


def no_grad(call: Callable[..., object], *args: Any) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> object:
        return call(*args)

    return run


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- ceilings -------------------------------------------------------------------------------------


def copy(b: Bench) -> None:
    n = b.size(1 << 30, 1 << 16) // 4
    source, target = b.tensor(n), b.tensor(n)
    b.run("copy, 1 GiB float32", {"ours": lambda: target.copy_(source)}, bytes=8 * n)


def product(b: Bench, dtype: torch.dtype) -> None:
    m = b.size(8192, 64)
    left, right = b.tensor(m, m, dtype=dtype), b.tensor(m, m, dtype=dtype)
    out = torch.empty_like(left)
    calls: Calls = {"ours": lambda: torch.mm(left, right, out=out)}
    b.run(f"torch.mm {m}³, {short(dtype)}", calls, flops=2 * m**3)


# --- operators ------------------------------------------------------------------------------------


def _rows(b: Bench, k: int, dtype: torch.dtype) -> int:
    """Examples that make 1 GiB of decoder output."""
    return (1 << 30) // (k * D * dtype.itemsize) + 1


def _wide(t: Tensor) -> Tensor:
    """The last example in float64."""
    return t.detach()[-1:].double()


def log_weights(b: Bench, dtype: torch.dtype, *, small: bool = False) -> None:
    examples, k = (100, 5) if small else (_rows(b, 5000, dtype), 5000)
    examples, k = b.size(examples, 2), b.size(k, 7)
    logits, x = b.tensor(examples, k, D, dtype=dtype), torch.rand(examples, D, device=b.device)
    ratio, low = b.tensor(examples, k), x.to(dtype)

    def plain(logits: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
        return rivals.log_weights(logits.float(), x, ratio, rivals.density_explicit)

    def agrees() -> None:
        expected = rivals.log_weights(_wide(logits), _wide(x), _wide(ratio), rivals.density_bce)
        ours = dvae_fast.log_weights(logits, x, ratio)[-1:]
        assert_agrees("log_weights", ours, expected, AGREEMENT[FP32])

    calls: Calls = {"ours": no_grad(dvae_fast.log_weights, logits, x, ratio)}
    for name, density in rivals.EAGER_DENSITIES.items():
        calls[f"eager, {name}"] = no_grad(rivals.log_weights, logits, low, ratio, density)
    for name, f in b.compiled(plain).items():
        calls[name] = no_grad(f, logits, x, ratio)
    b.run(
        f"log_weights forward, {examples}×{k}×{D}, {short(dtype)}",
        calls,
        bytes=logits.numel() * dtype.itemsize + (x.numel() + 2 * ratio.numel()) * 4,
        agrees=agrees,
    )


def iwae_loss(b: Bench, k: int, dtype: torch.dtype, *, small: bool = False) -> None:
    examples = b.size(100 if small else _rows(b, k, dtype), 3)
    logits = b.tensor(examples, k, D, dtype=dtype).requires_grad_()
    x = torch.rand(examples, D, device=b.device)
    ratio, low = b.tensor(examples, k).requires_grad_(), x.to(dtype)

    def gradient(loss: Callable[..., Tensor], *args: Any) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss(logits, *args), (logits, ratio))

    def plain(logits: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
        return rivals.iwae_loss(logits.float(), x, ratio, rivals.density_explicit)

    def agrees() -> None:
        ours = gradient(dvae_fast.iwae_loss, x, ratio)()
        last = [_wide(logits).requires_grad_(), _wide(ratio).requires_grad_()]
        loss = rivals.iwae_loss(last[0], _wide(x), last[1], rivals.density_bce)
        for name, mine, exact in zip(
            ("logits", "log_ratio"), ours, torch.autograd.grad(loss, last), strict=True
        ):
            # Of the mean over examples, times their number.
            what = f"iwae_loss's gradient of {name}"
            assert_agrees(what, mine[-1:].double() * examples, exact, AGREEMENT[mine.dtype])

    calls: Calls = {"ours": gradient(dvae_fast.iwae_loss, x, ratio)}
    for name, density in rivals.EAGER_DENSITIES.items():
        calls[f"eager, {name}"] = gradient(rivals.iwae_loss, low, ratio, density)
    for name, f in b.compiled(plain).items():
        calls[name] = gradient(f, x, ratio)
    b.run(
        f"iwae_loss forward+backward, {examples}×{k}×{D}, {short(dtype)}",
        calls,
        bytes=2 * logits.numel() * dtype.itemsize,
        agrees=agrees,
    )


def corrupt(b: Bench, copies: int, *, small: bool = False) -> None:
    examples = b.size(100 if small else (1 << 28) // (copies * D * 4) + 1, 3)
    x = torch.rand(examples, D, device=b.device)
    corruption = SaltAndPepper(RATE, SALT).to(b.device)

    def plain(x: Tensor) -> Tensor:
        return rivals.corrupt(x, copies, RATE, SALT, rivals.corrupt_select)

    calls: Calls = {"ours": lambda: dvae_fast.corrupt(x, corruption, copies)}
    for name, formula in rivals.CORRUPTIONS.items():
        calls[f"eager, {name}"] = no_grad(rivals.corrupt, x, copies, RATE, SALT, formula)
    for name, f in b.compiled(plain).items():
        calls[name] = no_grad(f, x)
    b.run(
        f"corrupt salt-and-pepper, {copies}×{examples}×{D}",
        calls,
        bytes=4 * (1 + copies) * x.numel(),
    )


def sample_latent(b: Bench, *, small: bool = False) -> None:
    k = 5 if small else 50
    examples = b.size(100 if small else (1 << 28) // (k * Z * 4) + 1, 3)
    mean, log_var = (0.1 * b.tensor(examples, Z) for _ in range(2))

    def plain(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        return rivals.sample_latent(mean, log_var, k, rivals.reparameterise)

    calls: Calls = {"ours": lambda: dvae_fast.sample_latent(mean, log_var, k)}
    for name, formula in rivals.REPARAMETERISATIONS.items():
        calls[f"eager, {name}"] = no_grad(rivals.sample_latent, mean, log_var, k, formula)
    for name, f in b.compiled(plain).items():
        calls[name] = no_grad(f, mean, log_var)
    b.run(
        f"sample_latent forward, {examples}×{k}×{Z}",
        calls,
        bytes=4 * examples * (k * (Z + 1) + 2 * Z),
    )


def mixture(b: Bench) -> None:
    components, k = 10, 50
    examples = b.size((1 << 28) // (k * Z * 4) + 1, 3)
    mean, log_var = b.tensor(components, examples, Z), b.tensor(components, examples, Z)
    z = b.tensor(examples, k, Z)

    def agrees() -> None:
        last = (z[-1:].double(), mean[:, -1:].double(), log_var[:, -1:].double())
        ours = dvae_fast.mixture_log_ratio(z, mean, log_var)[-1:]
        assert_agrees("mixture_log_ratio", ours, rivals.mixture_broadcast(*last), AGREEMENT[FP32])

    calls: Calls = {"ours": no_grad(dvae_fast.mixture_log_ratio, z, mean, log_var)}
    for name, formula in rivals.MIXTURES.items():
        calls[f"eager, {name}"] = no_grad(formula, z, mean, log_var)
    for name, f in b.compiled(rivals.mixture_broadcast).items():
        calls[name] = no_grad(f, z, mean, log_var)
    b.run(
        f"mixture_log_ratio forward, {components} components, {examples}×{k}×{Z}",
        calls,
        bytes=4 * (z.numel() + 2 * mean.numel() + examples * k),
        agrees=agrees,
    )


def linear_log_weights(b: Bench, dtype: torch.dtype) -> None:
    """A decoder's last layer, 500,000 rows: the product, and the likelihood of its output."""
    examples, k, width = b.size(100, 2), b.size(5000, 7), HIDDEN[0]
    hidden, weight = b.tensor(examples, k, width, dtype=dtype), b.tensor(D, width, dtype=dtype)
    weight, bias = 0.1 * weight, b.tensor(D, dtype=dtype)
    x, ratio = torch.rand(examples, D, device=b.device), b.tensor(examples, k)
    low = x.to(dtype)

    def plain(hidden: Tensor, x: Tensor) -> Tensor:
        logits = F.linear(hidden, weight, bias).float()
        return rivals.log_weights(logits, x, ratio, rivals.density_explicit)

    def eager(name: str) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        return rivals.log_weights(logits, low, ratio, rivals.EAGER_DENSITIES[name])

    def agrees() -> None:
        logits = F.linear(_wide(hidden), weight.double(), bias.double())
        expected = rivals.log_weights(logits, _wide(x), _wide(ratio), rivals.density_bce)
        ours = dvae_fast.linear_log_weights(hidden, weight, bias, x, ratio)[-1:]
        assert_agrees("linear_log_weights", ours, expected, AGREEMENT[dtype])

    calls: Calls = {
        "ours": no_grad(dvae_fast.linear_log_weights, hidden, weight, bias, x, ratio),
        "eager, tiles": no_grad(
            rivals.linear_log_weights, hidden, weight, bias, low, ratio, rivals.density_softplus, k
        ),
    }
    for name in rivals.EAGER_DENSITIES:
        calls[f"eager, {name}"] = no_grad(eager, name)
    for name, f in b.compiled(plain).items():
        calls[name] = no_grad(f, hidden, x)
    b.run(
        f"linear_log_weights forward, {examples}×{k}, {width}→{D}, {short(dtype)}",
        calls,
        flops=2 * examples * k * width * D,
        agrees=agrees,
    )


# --- loops ----------------------------------------------------------------------------------------


def training_step(b: Bench, k: int) -> None:
    """The paper's network, B = 100: ours and plain PyTorch, each in a CUDA graph and out of one."""
    examples = b.size(100, 10)
    x = (torch.rand(examples, D, device=b.device) < 0.2).float()
    gpu = b.device.type == "cuda"
    calls: Calls = {}

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.0, fused=True, capturable=gpu)

    def ours() -> DIWAE:
        corruption = SaltAndPepper(RATE, SALT)
        return DIWAE(D, Z, HIDDEN, corruption=corruption, samples=k).to(b.device)

    def in_graph(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        """What `loss` holds is captured when it is first called, which is not timed."""
        made: list[GraphedStep] = []
        # A seed for each step, drawn outside the graph as the trainer does; its fetching of the
        # batch is left out, for every rival.
        seeds = torch.randint(2**62, (64, 1), device=b.device).unbind()
        count = [0]

        def replay() -> None:
            if not made:
                made.append(GraphedStep(loss, adam(model), x))
            count[0] += 1
            made[0](x, seeds[count[0] % 64])

        return replay

    plain = rivals.DIWAE(D, Z, HIDDEN, nn.Softplus, k, RATE, SALT).to(b.device)
    model = ours()
    calls["ours, eager" if gpu else "ours"] = rivals.training_step(model.loss, adam(model), x)
    calls["eager"] = rivals.training_step(plain.loss, adam(plain), x)
    if gpu:
        other = ours()
        calls["ours"] = in_graph(other, other.loss)
        calls["eager, in a graph"] = in_graph(plain, lambda x, seed: plain.loss(x))
    for name, loss in b.compiled(plain.loss).items():
        calls[name] = rivals.training_step(loss, adam(plain), x)
    encoder = D * HIDDEN[0] + HIDDEN[0] * HIDDEN[1] + HIDDEN[1] * 2 * Z
    decoder = Z * HIDDEN[1] + HIDDEN[1] * HIDDEN[0] + HIDDEN[0] * D
    b.run(
        f"training step, B={examples} K={k}, 784-200-200-50",
        calls,
        flops=2 * examples * (3 * (encoder + k * decoder) - D * HIDDEN[0]),
    )


def evaluation(b: Bench) -> None:
    """The size of MNIST's test set, k = 5000, Burda's decoder, bfloat16 matrices."""
    examples, k = b.size(10_000, 4), b.size(5000, 9)
    x = (torch.rand(examples, D, device=b.device) < 0.2).float()
    model = IWAE(D, Z, HIDDEN).to(b.device)
    plain = rivals.DIWAE(D, Z, HIDDEN, nn.Softplus, k, RATE, SALT).to(b.device)
    plain.copy_parameters(model)
    low = torch.autocast(b.device.type, torch.bfloat16)

    def ours(x: Tensor = x, seed: int | None = None) -> LikelihoodEstimate:
        return dvae_fast.estimate_log_likelihood(model, x, k, seed=seed, dtype="bfloat16")

    def agrees() -> None:
        """The noise is an example's own, so the first ones are what they are by themselves."""
        together, alone = (ours(part, seed=1).log_likelihood for part in (x, x[:3]))
        assert_agrees("evaluation", together[:3], alone, 1e-3)

    def chunked(log_weights: Callable[..., Tensor], batch: int, chunk: int) -> object:
        with low:
            parts = torch.split(x, batch)
            return [rivals.estimate_log_likelihood(plain, log_weights, p, k, chunk) for p in parts]

    # The best plain chunk: the largest that fits easily, 500,000 rows, and a smaller one.
    sizes = {"eager": (100, 5000), "eager, small chunks": (100, 500)}
    if b.tiny:
        sizes = {"eager": (2, 3)}
    calls: Calls = {"ours": ours}
    for name, size in sizes.items():
        calls[name] = lambda size=size: chunked(plain.log_weights, *size)  # type: ignore[misc]
    for name, f in b.compiled(plain.log_weights).items():
        calls[name] = lambda f=f: chunked(f, *sizes["eager"])  # type: ignore[misc]
    rows, decoder = examples * k, Z * HIDDEN[1] + HIDDEN[1] * HIDDEN[0] + HIDDEN[0] * D
    b.run(
        f"evaluation, {examples:,} × k={k}, bfloat16",
        calls,
        flops=2 * rows * decoder,
        agrees=agrees,
    )


def all_cases() -> dict[str, Callable[[Bench], None]]:
    """By their keys; those that targets speak of first, for a run may be stopped early."""
    both = (FP32, BF16)
    later = [(50, BF16), *((k, dtype) for k in (1, 5, 500) for dtype in both)]
    return {
        "copy": copy,
        "log_weights float32": partial(log_weights, dtype=FP32),
        "log_weights bfloat16": partial(log_weights, dtype=BF16),
        "iwae_loss K=50 float32": partial(iwae_loss, k=50, dtype=FP32),
        "training K=5": partial(training_step, k=5),
        "evaluation bfloat16": evaluation,
        **{f"product {short(dtype)}": partial(product, dtype=dtype) for dtype in both},
        **{f"iwae_loss K={k} {short(t)}": partial(iwae_loss, k=k, dtype=t) for k, t in later},
        **{f"corrupt M={m}": partial(corrupt, copies=m) for m in (1, 10)},
        "sample_latent": sample_latent,
        "mixture M=10": mixture,
        **{f"linear_log_weights {short(t)}": partial(linear_log_weights, dtype=t) for t in both},
        **{f"training K={k}": partial(training_step, k=k) for k in (1, 50)},
        "log_weights float32 small": partial(log_weights, dtype=FP32, small=True),
        "iwae_loss K=5 float32 small": partial(iwae_loss, k=5, dtype=FP32, small=True),
        "corrupt M=1 small": partial(corrupt, copies=1, small=True),
        "sample_latent small": partial(sample_latent, small=True),
    }
