"""The CUDA kernels on small operands, against the CPU; small enough for compute-sanitizer."""

from __future__ import annotations

import torch

import dvae_fast
from dvae_fast import corruptions, models, ops

DEVICE = "cuda"


def close(a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(
        a.cpu().double(), b.cpu().double(), rtol=2e-2, atol=2e-2, msg=lambda m: f"{what}: {m}"
    )


def data_of(uniform: torch.Tensor, likelihood: str) -> torch.Tensor:
    """What the likelihood takes: one of 256 levels, a count, or the numbers themselves."""
    if likelihood == "discretised_logistic":
        return (255 * uniform).round() / 255
    return (20 * uniform).floor() if likelihood == "negative_binomial" else uniform


def loss_and_gradients(device: str, dtype: torch.dtype, size: int, likelihood: str) -> list:
    g = torch.Generator().manual_seed(size)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype).to(device)

    x = data_of(torch.rand(3, size, generator=g), likelihood).to(device)
    mean, log_var = normal(2, 3, 5).requires_grad_(), normal(2, 3, 5).requires_grad_()
    z, ratio = dvae_fast.sample_latent(mean.float(), log_var.float(), 7, seed=1)
    ratio = ratio + dvae_fast.latent_log_ratio(z, mean.float(), log_var.float())
    ratio = ratio + dvae_fast.mixture_log_ratio(z, mean.float(), log_var.float())
    logits = normal(2, 3, 7, size).requires_grad_()
    positive = logits.float().exp().to(dtype)
    scales = [None] if likelihood == "bernoulli" else [positive, positive[0, 0]]  # full, shared
    means = positive if likelihood == "negative_binomial" else logits
    weight, bias = normal(size, 5).requires_grad_(), normal(size).requires_grad_()
    linear = (weight, bias) if likelihood == "bernoulli" else None
    out = []
    for scale in scales:
        params = means if scale is None else (means, scale)
        out.append(dvae_fast.iwae_loss(params, x, ratio, likelihood))
        weights = dvae_fast.log_weights(params, x, ratio, likelihood)
        out.append(dvae_fast.logmeanexp(weights).mean())
    if linear is not None:
        out.append(dvae_fast.linear_log_weights(z.to(dtype), *linear, x, ratio).mean())
    leaves = [mean, log_var, logits, *(linear or ())]
    return [*out, *torch.autograd.grad(sum(o.double() for o in out), leaves)]


def more(device: str) -> list[torch.Tensor]:
    """What a loss of few samples does not launch, each once."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(device)

    x, ratio = torch.rand(3, 784, generator=g).to(device), normal(3, 300)
    out = []
    # Too many samples for shared memory; and sums over rows, of a shared scale and of a bias.
    logits = normal(3, 300, 784).requires_grad_()
    loss = dvae_fast.iwae_loss(logits, x, ratio)
    out += [loss, *torch.autograd.grad(loss, logits)]
    scale = normal(784).exp().requires_grad_()
    for one in (scale, scale[0]):
        loss = dvae_fast.iwae_loss((logits, one), x, ratio, "gaussian")
        out += [loss, *torch.autograd.grad(loss, (logits, scale))]
    hidden, weight = normal(3, 300, 5).requires_grad_(), normal(784, 5)
    weights = dvae_fast.linear_log_weights(hidden, weight, None, x, ratio)
    out += [weights, *torch.autograd.grad(weights.mean(), hidden)]
    overwritten = dvae_fast.iwae_loss(logits * 1, x, ratio, overwrite_params=True)
    out += [overwritten, *torch.autograd.grad(overwritten, logits)]
    soft = dvae_fast.functional.softplus(logits)
    out += [soft, *torch.autograd.grad(soft.sum(), logits)]
    clean = x.clone().requires_grad_()
    std = scale.detach().requires_grad_()
    for corruption in (corruptions.Masking(0.3), corruptions.AdditiveGaussian(std)):
        noisy = dvae_fast.corrupt(clean, corruption, copies=3, seed=4)
        leaves = (clean, std) if isinstance(corruption, corruptions.AdditiveGaussian) else (clean,)
        out += torch.autograd.grad(noisy.square().sum(), leaves)
    torch.manual_seed(0)
    model = models.IWAE(784, 5, (9,)).to(device)
    out.append(dvae_fast.estimate_log_likelihood(model, x, 700, chunk=300, seed=1).log_likelihood)
    return out


def main() -> None:
    assert ops.cuda_kernels(), "the extension has no CUDA kernels: DVAE_FAST_CUDA=1"
    x = torch.rand(5, 65)
    for corruption in (
        corruptions.Masking(0.3),
        corruptions.SaltAndPepper(torch.rand(65)),
        corruptions.BitFlip(0.3),
        corruptions.AdditiveGaussian(0.3),
    ):
        cpu = dvae_fast.corrupt(x, corruption, copies=3, seed=4)
        gpu = dvae_fast.corrupt(x.to(DEVICE), corruption.to(DEVICE), copies=3, seed=4)
        close(gpu, cpu, repr(corruption))
    for likelihood in ("bernoulli", "gaussian", "discretised_logistic", "negative_binomial"):
        for dtype in (torch.float32, torch.bfloat16):
            for size in (1, 64, 65, 784):
                results = (loss_and_gradients(d, dtype, size, likelihood) for d in (DEVICE, "cpu"))
                if dtype == torch.float32:
                    for i, (a, b) in enumerate(zip(*results, strict=True)):
                        close(a, b, f"{likelihood}, D={size}, result {i}")
                else:
                    next(results)
    for i, (a, b) in enumerate(zip(more(DEVICE), more("cpu"), strict=True)):
        close(a, b, f"more, result {i}")
    torch.cuda.synchronize()
    print("gpu_small: all as on the CPU")


if __name__ == "__main__":
    main()
