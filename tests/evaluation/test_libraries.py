"""Models of other libraries, each evaluated in a few lines: their own estimate and this one agree.

Each is tiny and hardly trained. Both estimates have the same number of samples, and so the same
bias and standard error; they are to differ by less than 3 standard errors of their difference: a
false alarm in 370, once for a version of the library, for seeds are fixed.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from dvae_fast.evaluation import (
    LikelihoodEstimate,
    estimate_from_log_weights,
    estimate_log_likelihood,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]

N, D, Z, SEED = 20, 12, 2, 3


def _binary() -> Tensor:
    return torch.rand(N, D, generator=torch.Generator().manual_seed(1)).round()


def _agree(
    theirs: float, ours: LikelihoodEstimate, what: str, seconds: tuple[float, float]
) -> None:
    error = math.sqrt(2) * ours.mean_standard_error
    print(
        f"{what}: {theirs:.3f} of their own in {seconds[0]:.2f} s, {ours.mean:.3f} ± "
        f"{ours.mean_standard_error:.3f} here in {seconds[1]:.2f} s, "
        f"{abs(theirs - ours.mean) / error:.1f} standard errors apart"
    )
    assert 0 < error < 0.5
    assert abs(theirs - ours.mean) < 3 * error


def _timed(call: Any) -> tuple[Any, float]:
    torch.manual_seed(SEED)
    start = time.perf_counter()
    with torch.no_grad():
        return call(), time.perf_counter() - start


def _log_mean(log_w: Tensor) -> float:
    """Of (B, k): the mean over examples of log 1/k Σ w."""
    return float((torch.logsumexp(log_w.double(), 1) - math.log(log_w.shape[1])).mean())


class FlowVAE(nn.Module):
    """p(x|z) of one layer, and a posterior that `flow` makes of what an encoder says."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.flow = nn.Linear(D, 2 * Z), nn.Linear(Z, D), flow

    def encode(self, x: Tensor) -> Any:
        return self.flow(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)  # type: ignore[no-any-return]

    def own(self, x: Tensor, k: int) -> float:
        """By the library alone."""
        q = self.encode(x)
        z = q.rsample((k,))
        log_w = Bernoulli(logits=self.decode(z)).log_prob(x).sum(-1) - q.log_prob(z)
        return _log_mean((log_w + Normal(0.0, 1.0).log_prob(z).sum(-1)).T)


def _of_torch(h: Tensor) -> Any:
    mean, log_std = h.chunk(2, -1)
    base = Independent(Normal(mean, torch.exp(log_std)), 1)
    return TransformedDistribution(base, [TanhTransform(cache_size=1), AffineTransform(0.0, 3.0)])


@pytest.mark.parametrize("library", ["torch", "zuko"])
def test_a_flow_as_posterior(library: str) -> None:
    flow = _of_torch
    torch.manual_seed(2)
    if library == "zuko":
        flow = pytest.importorskip("zuko").flows.MAF(Z, context=2 * Z, transforms=2)
    model, x = FlowVAE(flow), _binary()
    theirs, seconds = _timed(lambda: model.own(x, 2000))
    ours, here = _timed(lambda: estimate_log_likelihood(model, x, 2000, seed=SEED))
    _agree(theirs, ours, f"a flow of {library}", (seconds, here))


def test_a_flow_of_nflows() -> None:
    flows = pytest.importorskip("nflows.flows")
    distributions = pytest.importorskip("nflows.distributions")
    transforms = pytest.importorskip("nflows.transforms")
    torch.manual_seed(2)
    q = flows.Flow(
        transforms.MaskedAffineAutoregressiveTransform(Z, 8, context_features=2 * Z),
        distributions.StandardNormal([Z]),
    )
    encoder, decoder, x = nn.Linear(D, 2 * Z), nn.Linear(Z, D), _binary()

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        z, log_q = q.sample_and_log_prob(k, context=encoder(x))  # (B, k, Z) and (B, k)
        log_p = Bernoulli(logits=decoder(z)).log_prob(x.unsqueeze(1)).sum(-1)
        return log_p + Normal(0.0, 1.0).log_prob(z).sum(-1) - log_q

    theirs, seconds = _timed(lambda: _log_mean(log_weights(x, 2000, 0)))
    ours, here = _timed(lambda: estimate_from_log_weights(log_weights, x, 2000, seed=SEED))
    _agree(theirs, ours, "a flow of nflows", (seconds, here))


def test_a_guide_of_pyro() -> None:
    pyro = pytest.importorskip("pyro")
    dist, poutine = pyro.distributions, pyro.poutine
    torch.manual_seed(2)
    encoder, decoder, x = nn.Linear(D, 2 * Z), nn.Linear(Z, D), _binary()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        mean, log_std = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(mean, torch.exp(log_std)).to_event(1))

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        samples = pyro.plate("samples", k, dim=-2)
        q = poutine.trace(samples(guide)).get_trace(x)
        p = poutine.trace(poutine.replay(samples(model), trace=q)).get_trace(x)
        p.compute_log_prob(), q.compute_log_prob()
        log_p = sum(site["log_prob"] for site in p.nodes.values() if "log_prob" in site)
        log_q = sum(site["log_prob"] for site in q.nodes.values() if "log_prob" in site)
        return (log_p - log_q).T

    def own() -> float:
        values = []
        for i in range(N):
            posterior = pyro.infer.Importance(model, guide, num_samples=300)
            values.append(float(posterior.run(x[i : i + 1]).get_log_normalizer()))
        return float(np.mean(values))

    theirs, seconds = _timed(own)
    ours, here = _timed(lambda: estimate_from_log_weights(log_weights, x, 300, seed=SEED))
    _agree(theirs, ours, "a guide of Pyro", (seconds, here))


def test_a_model_of_pythae() -> None:
    models = pytest.importorskip("pythae.models")
    torch.manual_seed(2)
    config = models.VAEConfig(input_dim=(1, 3, 4), latent_dim=Z, reconstruction_loss="bce")
    model, x = models.VAE(config).eval(), _binary().view(N, 1, 3, 4)

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        h = model.encoder(x)
        q = Normal(h.embedding, torch.exp(0.5 * h.log_covariance))
        z = q.sample((k,))  # (k, B, Z)
        means = model.decoder(z.flatten(0, 1))["reconstruction"].view(k, *x.shape)
        log_p = Bernoulli(means).log_prob(x).flatten(2).sum(-1)
        return (log_p + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)).T

    theirs, seconds = _timed(lambda: model.get_nll(x, n_samples=500, batch_size=500))
    ours, here = _timed(lambda: estimate_from_log_weights(log_weights, x, 500, seed=SEED))
    _agree(theirs, ours, "a VAE of pythae", (seconds, here))


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_a_model_of_scvi(likelihood: str) -> None:
    scvi = pytest.importorskip("scvi")
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(1)
    counts = rng.negative_binomial(2, 0.3, (64, D)).astype(np.float32)
    data = anndata.AnnData(counts)
    scvi.settings.seed = 2
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data, n_latent=Z, gene_likelihood=likelihood)
    model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False, logger=False)
    module = model.module.eval()

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        zero = torch.zeros(len(x), 1, dtype=torch.int64)
        tensors = {"X": x, "batch": zero, "labels": zero}
        q, p = module(tensors, inference_kwargs={"n_samples": k}, compute_loss=False)
        log_p = p["px"].log_prob(x).sum(-1) + p["pz"].log_prob(q["z"]).sum(-1)
        return (log_p - q["qz"].log_prob(q["z"]).sum(-1)).view(k, len(x)).T

    theirs, seconds = _timed(
        lambda: model.get_marginal_ll(n_mc_samples=500, n_mc_samples_per_pass=500)
    )
    ours, here = _timed(
        lambda: estimate_from_log_weights(log_weights, torch.from_numpy(counts), 500, seed=SEED)
    )
    _agree(float(theirs), ours, f"SCVI, {likelihood}", (seconds, here))
