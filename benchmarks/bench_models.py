"""A training step and an evaluation of the networks: ours, plain PyTorch, pythae, Pyro.

The steps are corruption, loss, gradient and fused Adam for every rival, the data in memory.
"""

from __future__ import annotations

import copy
import warnings
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import cases
import pytest
import rivals
import torch
from cases import HIDDEN, B, Call, Calls, Case, D, Rival, Step, Z, close, make_data, make_rival
from torch import Tensor, nn

import dvae_fast
from dvae_fast.evaluation.precision import has_bfloat16
from dvae_fast.models import IWAE, BernoulliLatentModel
from dvae_fast.noise import latent_noise
from dvae_fast.training import TrainingStep

if TYPE_CHECKING:
    from collections.abc import Callable


ESTIMATORS = ("ours, stl", "ours, dreg", "ours, vimco", "ours, Bernoulli latents, vimco")


class TrainingCase(Case):
    """One step. The flops are those of the linear layers, forward and backward: the encoder runs
    over M B rows, the decoder over M B K."""

    patience = 2.0

    def __init__(
        self, k: int, b: int = B, d: int = D, z: int = Z, m: int = 1, h: int = HIDDEN[0]
    ) -> None:
        copies = f" M={m}" if m > 1 else ""
        self.group = f"training step, {d}-{h}-{h}-{z}-{h}-{h}-{d}, B={b} K={k}{copies}"
        self.model = cases.make_model(k, d, z, copies=m, hidden=(h, h))
        self.x, self.elements, self.sizes = make_data(b, d), m * b * k * d, (m, k, z)
        encoder = d * h + h * h + h * 2 * z
        decoder = z * h + h * h + h * d
        # Twice forward's again for both gradients; the first layer needs none for its input.
        self.flops = 2 * m * b * (3 * (encoder + k * decoder) - d * h)
        self.plain = make_rival(self.model)

    def ways(self, rival: str) -> Calls:
        if rival in ESTIMATORS:  # of the encoder's gradient, where ours is the standard one
            kind = {"kind": BernoulliLatentModel} if "Bernoulli" in rival else {}
            options = {"estimator": rival.split()[-1], **kind}
            return {"": Step(cases.make_model(self.model.samples, **options), self.x)}
        if rival.startswith("products"):
            return {"no result": self._products(getattr(torch, rival.split()[-1], torch.float32))}
        if rival.endswith(", bfloat16"):
            if not has_bfloat16("cpu"):
                pytest.skip("this CPU has no instructions for bfloat16")
            steps = self.ways(rival.removesuffix(", bfloat16"))
            for step in steps.values():
                step.loss = torch.autocast("cpu", torch.bfloat16)(step.loss)
            return steps
        if rival.startswith("ours"):
            model = copy.deepcopy(self.model)
            loss = torch.compile(model.loss, dynamic=False) if "compile" in rival else model.loss
            step = Step(model, self.x, loss)
            if "TrainingStep" in rival:
                step.whole = partial(TrainingStep(model, step.optimiser), self.x)
            return {"": step}
        steps: Calls = {}
        compiled = rival in rivals.COMPILERS
        samples = {"": rivals.reparameterise} if compiled else rivals.REPARAMETERISATIONS
        forms = [*rivals.candidates(rivals.DENSITIES, rival).items()]
        for name, density in forms[:1] if compiled else forms:  # each half a minute to compile
            for sample, formula in samples.items():
                plain = make_rival(self.model)
                plain.density, plain.reparameterise = density, formula
                loss = rivals.compiled(plain.loss, rival) if compiled else plain.loss
                steps[", ".join(filter(None, (name, sample)))] = Step(plain, self.x, loss)
        return steps

    def _products(self, dtype: torch.dtype) -> Call:
        """The matrix products forward and backward and nothing else, into kept buffers."""
        m, k, _ = self.sizes
        model = copy.deepcopy(self.model)
        parts = ((model.encoder, m), (model.decoder, m * k))
        layers = [
            (torch.randn(len(self.x) * each, f.in_features).to(dtype), f.weight.to(dtype), f.bias)
            for part, each in parts
            for f in part.to(dtype).requires_grad_(False).modules()
            if isinstance(f, nn.Linear)
        ]
        made = [(x.new_empty(len(x), len(w)), torch.empty_like(x)) for x, w, _ in layers]
        weights = [torch.empty_like(w) for _, w, _ in layers]

        def products() -> None:
            for (x, w, bias), (out, _) in zip(layers, made, strict=True):
                torch.addmm(bias, x, w.t(), out=out)
            for i in reversed(range(len(layers))):
                (x, w, _), (out, below) = layers[i], made[i]
                torch.mm(out.t(), x, out=weights[i])
                if i:  # the data need no gradient
                    torch.mm(out, w, out=below)

        return products

    def check(self, rival: str, result: Any, plain: nn.Module | None = None) -> float:
        """The plain model is ours: the same loss and gradient from the same noise."""
        plain, (m, k, z) = plain or self.plain, self.sizes
        seed = torch.tensor([7], device=self.x.device)
        corrupted = dvae_fast.corrupt(self.x, self.model.corruption, m, seed).flatten(0, 1)
        noise = latent_noise(m, len(self.x), k, z, seed, 0, 0, torch.float32).flatten(0, 1)
        losses = self.model.loss(self.x, seed), plain.loss(self.x, corrupted, noise)
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-3)
        close("gradient", gradient(self.model, losses[0]), gradient(plain, losses[1]), 1e-3)
        return losses[0].item()

    def verify(self, rival: str, built: Rival) -> None:
        """From other noise, and through the compiler, the loss is much the same."""
        if rival.startswith("products"):
            return
        model = built.call.model
        expected = self.check(rival, None, model if isinstance(model, rivals.DIWAE) else None)
        assert abs(built.call.loss(self.x).item() / expected - 1) < 0.05, rival


class EpochCase(TrainingCase):
    """An epoch over as many images as MNIST trains on, K = 1, on one core: each batch is fetched in
    a new order and binarised anew, for all alike, the products alone too."""

    def __init__(self) -> None:
        super().__init__(1)
        self.images = torch.rand(50_000, D)
        times = len(self.images) // len(self.x)
        self.group = f"epoch of {len(self.images)} images, K=1, one core"
        self.elements, self.flops = times * self.elements, times * self.flops

    def build(self, rival: str) -> Rival:
        torch.set_num_threads(1)  # for which the fastest formula is looked for
        built = super().build(rival)
        built.threads = 1
        return built

    def ways(self, rival: str) -> Calls:
        return {name: partial(self.epoch, step) for name, step in super().ways(rival).items()}

    def epoch(self, step: Call) -> None:
        for rows in torch.randperm(len(self.images)).split(len(self.x)):
            self.x.copy_(torch.bernoulli(self.images[rows]))
            step()

    def verify(self, rival: str, built: Rival) -> None:
        """By a step of it."""
        super().verify(rival, Rival(built.call.args[0]))


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """Of all parameters, in one row."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


CHUNKS = (100, 250, 1000)
TILE = 1000  # rows of the bare products
SEED = 5


class EvaluationCase(Case):
    """Encoded once, then samples in chunks, each rival at the chunk size that suits it best.

    Ours also returns standard error, effective sample size and ELBO, the others the estimate."""

    patience = 2.0

    def __init__(self, b: int = 10, k: int = 5000) -> None:
        self.group = f"evaluation, {b} examples × k={k}, decoder 50-200-200-784"
        self.k, self.model, self.x = k, cases.make_model(1), make_data(b)
        with torch.no_grad():
            # q(z|x) near the prior, p(x|z) much the same for every z: weights are nearly equal, and
            # standard errors can be relied on.
            self.model.encoder.output.weight.mul_(0.1)
            self.model.decoder.output.weight.mul_(0.2)
        self.elements = b * k * D
        self.flops = 2 * b * k * (Z * 200 + 200 * 200 + 200 * D)

    @cached_property
    def expected(self) -> dvae_fast.LikelihoodEstimate:
        return dvae_fast.estimate_log_likelihood(self.model, self.x, self.k, seed=3)

    def ways(self, rival: str) -> Calls:
        if "bfloat16" in rival and not has_bfloat16("cpu"):
            pytest.skip("this CPU has no instructions for bfloat16")
        if rival.startswith("ours"):
            options = {"dtype": "bfloat16"} if "bfloat16" in rival else {}
            estimate = partial(dvae_fast.estimate_log_likelihood, self.model, self.x, self.k)
            return {"": lambda: estimate(**options).log_likelihood}
        if rival == "products":
            return {"no result": self._products()}
        if "bfloat16" in rival:
            autocast = torch.autocast("cpu", torch.bfloat16)
            return {"autocast": autocast(self._plain(rival.split(", ")[0], "softplus", 250))}
        plain = partial(self._plain, rival)
        names = rivals.candidates(rivals.DENSITIES, rival)
        calls = rivals.by_chunk(plain, names, CHUNKS, "samples", self.patience)
        if rival == "compile":  # the compiler's options last
            best = rivals.fastest(calls, times_longer=self.patience)
            name, chunk = best.split(", ")[0], CHUNKS[list(calls).index(best)]
            frozen = plain(name, chunk, freezing=True)
            calls = {best: calls[best], f"{best}, freezing": frozen}
        return calls

    def _products(self) -> Call:
        """The decoder's matrix products and nothing else, in tiles that stay in cache, into kept
        buffers: what no evaluation can do without."""
        layers = [m for m in self.model.decoder.modules() if isinstance(m, nn.Linear)]
        z = torch.randn(TILE, Z)
        buffers = [torch.empty(TILE, layer.out_features) for layer in layers]
        rows = self.x.shape[0] * self.k

        def call() -> Tensor:
            for first in range(0, rows, TILE):
                n = min(TILE, rows - first)
                hidden = z[:n]
                for layer, buffer in zip(layers, buffers, strict=True):
                    out = buffer[:n]
                    torch.addmm(layer.bias, hidden, layer.weight.t(), out=out)
                    hidden = out
            return hidden

        return cases.no_grad(call)

    def _plain(self, rival: str, name: str, chunk: int, **options: bool) -> Call:
        model = make_rival(self.model)
        model.density = rivals.DENSITIES[name]
        log_weights = model.log_weights
        if rival == "compile":
            log_weights = rivals.compiled(log_weights, **options)
        else:
            model.reparameterise = rivals.reparameterise_dot
        return partial(rivals.estimate_log_likelihood, model, log_weights, self.x, self.k, chunk)

    def check(self, rival: str, result: Tensor) -> None:
        """Within six standard errors of ours, which is of other noise."""
        expected = self.expected
        if rival == "products":  # the last tile, of no example
            assert result.shape == (TILE, D)
            assert bool(result.isfinite().all())
            return
        difference = result.double() - expected.log_likelihood
        if "bfloat16" in rival:  # another decoder, within its own precision
            apart, bar = difference.mean().abs(), 0.01 + 7 * expected.mean_standard_error
        else:
            apart, bar = difference.abs(), 9 * expected.standard_error + 1e-3
        assert bool((torch.as_tensor(bar) < 0.3).all()), bar
        assert bool((apart <= bar).all()), (rival, apart, bar)


class PythaeCase(Case):
    """pythae's `get_nll` on its own VAE, 784-512-50-512-784, against ours on the same weights.

    10 examples by 5,000 samples. It encodes each example again for every batch and keeps gradients,
    which is its own affair. Ours is given its encoder, and its decoder without the last sigmoid.
    """

    patience = 2.0

    def __init__(self, b: int = 10, k: int = 5000) -> None:
        pythae = pytest.importorskip("pythae.models", reason="pythae is not installed")
        self.group = f"pythae's VAE, {b} examples × k={k}, 784-512-50-512-784"
        self.k, self.x = k, make_data(b)
        self.elements, self.flops = b * k * D, 2 * b * k * 512 * (Z + D)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = pythae.VAEConfig(input_dim=(D,), latent_dim=Z, reconstruction_loss="bce")
            self.model = pythae.VAE(config).eval()
        with torch.no_grad():
            # A posterior near the prior, so that the estimates are exact enough to be compared.
            for layer in (self.model.encoder.embedding, self.model.encoder.log_var):
                layer.weight.mul_(0.1)

    def _ours(self, **options: Any) -> dvae_fast.LikelihoodEstimate:
        decoder = self.model.decoder.layers
        decode = nn.Sequential(decoder[0][0], decoder[0][1], decoder[1][0])

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            out = self.model.encoder(x)
            return out.embedding, out.log_covariance

        return dvae_fast.estimate_log_likelihood((encode, decode), self.x, self.k, **options)

    def ways(self, rival: str) -> Calls:
        if rival == "ours":
            return {"": lambda: self._ours().mean}
        nll = partial(self.model.get_nll, self.x, n_samples=self.k)
        return {f"batches of {n}": partial(nll, batch_size=n) for n in (100, 500, 1000, 5000)}

    def check(self, rival: str, result: float) -> None:
        expected = self._ours(seed=3)
        bar = 7 * expected.mean_standard_error + 1e-3
        assert bar < 1
        assert abs(result - expected.mean) < bar, (rival, result, expected.mean)


class PyroStep(Step):
    """Loss and gradient by Pyro, of a sum over examples."""

    def __init__(self, model: IWAE, x: Tensor, k: int) -> None:
        super().__init__(model, x)
        self.elbo, *self.programs = _pyro(model, k)

    def differentiate(self) -> float:
        return self.elbo.loss_and_grads(*self.programs, self.x)


def _pyro(model: IWAE, k: int) -> tuple[Any, Callable[[Tensor], None], Callable[[Tensor], None]]:
    """The bound, p(x, z) and q(z|x), over a plate of examples."""
    import pyro.distributions as dist
    from pyro import infer, module, plate, sample

    def density(x: Tensor) -> None:
        module("decoder", model.decoder)
        with plate("examples", len(x)):
            prior = dist.Normal(x.new_zeros(Z), 1.0, validate_args=False).to_event(1)
            logits = model.decode(sample("z", prior))
            likelihood = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
            sample("x", likelihood, obs=x)

    def guide(x: Tensor) -> None:
        module("encoder", model.encoder)
        mean, log_var = model.encode(x)
        scale = torch.exp(0.5 * log_var)
        with plate("examples", len(x)):
            sample("z", dist.Normal(mean, scale, validate_args=False).to_event(1))

    if k == 1:
        return infer.Trace_ELBO(max_plate_nesting=1), density, guide
    # One plate, said rather than guessed: guessing runs both and draws numbers of its own.
    particles = {"num_particles": k, "vectorize_particles": True, "max_plate_nesting": 1}
    return infer.RenyiELBO(alpha=0, **particles), density, guide


class PyroCase(Case):
    """No corruption: for one sample Pyro's bound is `Trace_ELBO`, for more `RenyiELBO(alpha=0)`."""

    def __init__(self, k: int) -> None:
        pytest.importorskip("pyro", reason="Pyro is not installed")
        self.group = f"IWAE step against Pyro, {cases.NETWORK}, B={B} K={k}"
        self.k, self.x = k, make_data(B)
        self.model = IWAE(D, Z, HIDDEN, samples=k)
        self.elements = B * k * D

    def ways(self, rival: str) -> Calls:
        model = copy.deepcopy(self.model)
        if rival == "ours":
            return {"": Step(model, self.x)}
        step = PyroStep(model, self.x, self.k)
        return {type(step.elbo).__name__: step}

    def verify(self, rival: str, built: Rival) -> None:
        """The same value and gradient from the same numbers, ε of (K, B, Z), or (B, Z)."""
        if rival == "ours":
            return
        model = built.call.model
        model.zero_grad()
        torch.manual_seed(SEED)
        value = built.call.differentiate() / B
        found = torch.cat([p.grad.flatten() for p in model.parameters()]) / B
        torch.manual_seed(SEED)
        shape = (B, Z) if self.k == 1 else (self.k, B, Z)
        noise = torch.normal(torch.zeros(shape), torch.ones(shape)).view(self.k, B, Z)
        mean, log_var = self.model.encode(self.x)
        z = mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * noise.transpose(0, 1)
        ratio = dvae_fast.latent_log_ratio(z, mean, log_var)
        loss = dvae_fast.iwae_loss(self.model.decode(z), self.x, ratio)
        torch.testing.assert_close(value, loss.item(), rtol=1e-5, atol=0)
        close(rival, found, gradient(self.model, loss), 1e-3)


MODELS: dict[str, Callable[[], Case]] = {
    **{f"training {k}": partial(TrainingCase, k) for k in (50, 5, 1)},
    "epoch": EpochCase,
    "evaluation": EvaluationCase,
    "pythae": PythaeCase,
    **{f"pyro {k}": partial(PyroCase, k) for k in (50, 1)},
}
HALF = tuple(f"{rival}, bfloat16" for rival in ("ours", "products", "eager", "compile"))
STEPS = ("ours", "ours, TrainingStep", "products", "eager", "compile", *HALF)
RIVALS = {
    **{f"training {k}": STEPS + ESTIMATORS * (k > 1) for k in (50, 1)},
    "training 5": (*STEPS, "ours + torch.compile", *ESTIMATORS),
    "epoch": ("ours, TrainingStep", "products", "eager", "compile"),
    "evaluation": ("ours", "products", "eager", "compile", *(h for h in HALF if "prod" not in h)),
    "pythae": ("ours", "pythae"),
    **{f"pyro {k}": ("ours", "pyro") for k in (50, 1)},
}


@cases.rivals_of(RIVALS)
def bench_model(measure: cases.Measure, case: str) -> None:
    measure(MODELS, case)
