"""Models of other libraries, trained by them, and evaluated both by them and here.

    python docs/libraries.py [--wider] [NAME ...]

Trains each on the CPU in seconds (binarised digits of scikit-learn; counts drawn from three kinds
of cells), compares the two estimates of log p(x) on data that was held out, and writes the table of
docs/evaluating.md. NAME: some of torch, zuko, nflows, pyro, pythae, nb, zinb. Rows of libraries
that are not installed stay as they are. --wider: of SCVI's models, what becomes of k̂ and of the
estimate where samples are drawn from a posterior of larger deviations.

The rule, stated before any number was seen: seeds are 1 for what is trained and 3 for what is
evaluated. Both estimates have the same number of samples of the same weights, and so the same bias
and standard error; they agree if they differ by at most 2 standard errors of their difference,
which is a false alarm in 22. A pair that does not is compared once more, with the seed 4 and four
times the samples, and that counts: in all a false alarm in 480 for each model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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

from dvae_fast import likelihoods
from dvae_fast.evaluation import (
    MAX_PARETO_K,
    estimate_from_log_weights,
    estimate_log_likelihood,
)
from dvae_fast.reproduction.table import put_between

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.evaluation import LikelihoodEstimate

PAGE = Path(__file__).parent / "evaluating.md"
BEGIN, END = (
    f"<!-- {which} of what is written by `python docs/libraries.py`. -->"
    for which in ("Begin", "End")
)
TRAINED, EVALUATED, AGAIN = 1, 3, 4
MOST = 2.0  # standard errors
N, D, Z, GENES = 20, 64, 4, 30


@dataclass
class Model:
    """A trained model.

    Attributes:
        title: of its row.
        k: samples an example.
        own: by the library alone, k → the mean of log p(x) in nats.
        ours: here, k and seed.
        wider: the same with the posterior's deviations multiplied; None where none looks at that.
    """

    title: str
    k: int
    own: Callable[[int], float]
    ours: Callable[[int, int], LikelihoodEstimate]
    wider: Callable[[float, int, int], LikelihoodEstimate] | None = None


@dataclass
class Compared:
    """Two estimates, their distance in standard errors of their difference, and seconds."""

    theirs: float
    ours: LikelihoodEstimate
    seconds: tuple[float, float]

    @property
    def distance(self) -> float:
        error = math.sqrt(2) * self.ours.mean_standard_error
        return abs(self.theirs - self.ours.mean) / error


def compare(model: Model, repeats: int = 2) -> Compared:
    """By the rule above; the seconds are the least of so many calls."""
    found = _compared(model, model.k, EVALUATED, repeats)
    if found.distance > MOST:
        found = _compared(model, 4 * model.k, AGAIN, repeats)
    return found


def _compared(model: Model, k: int, seed: int, repeats: int) -> Compared:
    theirs, first = _timed(lambda: model.own(k), seed, repeats)
    ours, second = _timed(lambda: model.ours(k, seed), seed, repeats)
    return Compared(float(theirs), ours, (first, second))


def _timed(call: Callable[[], Any], seed: int, repeats: int) -> tuple[Any, float]:
    """What it returns, and the least of the seconds of so many calls."""
    results, seconds = [], []
    for _ in range(repeats):
        torch.manual_seed(seed)
        start = time.perf_counter()
        with torch.no_grad():
            results.append(call())
        seconds.append(time.perf_counter() - start)
    return results[0], min(seconds)


def log_mean(log_w: Tensor) -> float:
    """Of (B, k): the mean over examples of log 1/k Σ w."""
    return float((torch.logsumexp(log_w.double(), 1) - math.log(log_w.shape[1])).mean())


def digits() -> tuple[Tensor, Tensor]:
    """For training, and `N` that are held out: of 0 and 1, (…, D)."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy((load_digits().data > 7).astype(np.float32))
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(TRAINED))]
    return x[N:], x[:N]


def train(loss: Callable[[Tensor], Tensor], x: Tensor, parts: list[nn.Module], steps: int) -> None:
    """By Adam, on batches of 64."""
    optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x[torch.randint(len(x), (64,))]).backward()
        optimizer.step()


def networks(outputs: int) -> tuple[nn.Sequential, nn.Sequential]:
    """An encoder of so many outputs, and a decoder."""
    encoder = nn.Sequential(nn.Linear(D, 64), nn.Tanh(), nn.Linear(64, outputs))
    return encoder, nn.Sequential(nn.Linear(Z, 64), nn.Tanh(), nn.Linear(64, D))


# --- flows ----------------------------------------------------------------------------------------


class FlowVAE(nn.Module):
    """A posterior that `flow` makes of what an encoder says."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = networks(2 * Z)
        self.flow = flow

    def encode(self, x: Tensor) -> Any:
        return self.flow(self.encoder(x))

    def log_weights(self, x: Tensor, k: int) -> Tensor:
        """(B, k), by the library alone."""
        q = self.encode(x)
        z = q.rsample((k,))
        log_w = Bernoulli(logits=self.decoder(z)).log_prob(x).sum(-1) - q.log_prob(z)
        return (log_w + Normal(0.0, 1.0).log_prob(z).sum(-1)).T


def _bounded(h: Tensor) -> Any:
    mean, log_std = h.chunk(2, -1)
    base = Independent(Normal(mean, torch.exp(log_std)), 1)
    return TransformedDistribution(base, [TanhTransform(cache_size=1), AffineTransform(0.0, 3.0)])


def _flow(title: str, flow: Any, steps: int) -> Model:
    model = FlowVAE(flow)
    known, x = digits()
    train(lambda x: -model.log_weights(x, 1).mean(), known, [model], steps)

    def ours(k: int, seed: int) -> LikelihoodEstimate:
        return estimate_log_likelihood((model.encode, model.decoder), x, k, seed=seed)

    return Model(title, 2000, lambda k: log_mean(model.log_weights(x, k)), ours)


def of_torch(steps: int) -> Model:
    """A flow of torch.distributions."""
    return _flow("a flow of torch.distributions", _bounded, steps)


def of_zuko(steps: int) -> Model:
    """An autoregressive flow."""
    from zuko.flows import MAF

    flow = MAF(Z, context=2 * Z, transforms=2, hidden_features=(16,))
    return _flow("a flow of zuko", flow, steps)


def of_nflows(steps: int) -> Model:
    """An autoregressive flow, which is no distribution."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    q = Flow(MaskedAffineAutoregressiveTransform(Z, 16, 2 * Z), StandardNormal([Z]))
    encoder, decoder = networks(2 * Z)
    known, x = digits()

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        z, log_q = q.sample_and_log_prob(k, context=encoder(x))  # (B, k, Z) and (B, k)
        log_p = Bernoulli(logits=decoder(z)).log_prob(x.unsqueeze(1)).sum(-1)
        return log_p + Normal(0.0, 1.0).log_prob(z).sum(-1) - log_q

    train(lambda x: -log_weights(x, 1, 0).mean(), known, [q, encoder, decoder], steps)

    def ours(k: int, seed: int) -> LikelihoodEstimate:
        return estimate_from_log_weights(log_weights, x, k, seed=seed)

    return Model("a flow of nflows", 2000, lambda k: log_mean(log_weights(x, k, 0)), ours)


# --- libraries that train by themselves -----------------------------------------------------------


def of_pyro(steps: int) -> Model:
    """A model and a guide, by SVI; their own is RenyiELBO of α = 0, the bound of k particles."""
    import pyro
    from pyro import distributions as dist
    from pyro import poutine
    from pyro.infer import SVI, RenyiELBO, Trace_ELBO

    pyro.clear_param_store()
    encoder, decoder = networks(2 * Z)
    known, x = digits()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        mean, log_std = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(mean, torch.exp(log_std)).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    for _ in range(steps):
        svi.step(known[torch.randint(len(known), (64,))])

    def own(k: int) -> float:
        bound = RenyiELBO(0, num_particles=k, max_plate_nesting=1, vectorize_particles=True)
        return float(np.mean([-bound.loss(model, guide, x[i : i + 1]) for i in range(len(x))]))

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        samples = pyro.plate("samples", k, dim=-2)
        q = poutine.trace(samples(guide)).get_trace(x)
        p = poutine.trace(poutine.replay(samples(model), trace=q)).get_trace(x)
        p.compute_log_prob(), q.compute_log_prob()
        log_p = sum(site["log_prob"] for site in p.nodes.values() if "log_prob" in site)
        log_q = sum(site["log_prob"] for site in q.nodes.values() if "log_prob" in site)
        return (log_p - log_q).T

    def ours(k: int, seed: int) -> LikelihoodEstimate:
        return estimate_from_log_weights(log_weights, x, k, seed=seed)

    return Model("a guide of Pyro", 1000, own, ours)


def of_pythae(steps: int) -> Model:
    """A VAE by its trainer; their own is get_nll."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    known, x = (t.view(-1, 1, 8, 8) for t in digits())
    model = VAE(VAEConfig(input_dim=(1, 8, 8), latent_dim=Z, reconstruction_loss="bce"))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder, num_epochs=max(1, steps * 64 // len(known)), no_cuda=True,
            per_device_train_batch_size=64, learning_rate=1e-3, seed=TRAINED,
        )  # fmt: skip
        BaseTrainer(model, BaseDataset(known, torch.zeros(len(known))), None, config).train()
    model.eval()

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        h = model.encoder(x)
        return h.embedding, h.log_covariance

    def decode(z: Tensor) -> Tensor:
        return model.decoder(z)["reconstruction"]  # type: ignore[no-any-return]

    def ours(k: int, seed: int) -> LikelihoodEstimate:
        likelihood = likelihoods.Bernoulli(probabilities=True)
        return estimate_log_likelihood((encode, decode), x, k, likelihood=likelihood, seed=seed)

    return Model("a VAE of pythae", 1000, lambda k: model.get_nll(x, k, batch_size=k), ours)


def _scvi(likelihood: str, steps: int) -> Model:
    import anndata
    import scvi

    rng = np.random.default_rng(TRAINED)
    means = rng.gamma(2.0, 3.0, (3, GENES))[rng.integers(3, size=400)]
    counts = rng.negative_binomial(2.0, 2.0 / (2.0 + means)).astype(np.float32)
    counts[rng.random(counts.shape) < 0.2] = 0
    data = anndata.AnnData(counts)
    data.obs_names = [str(i) for i in range(len(data))]
    scvi.settings.seed = TRAINED
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data, n_latent=Z, gene_likelihood=likelihood)
    model.train(
        max_epochs=max(1, steps * 128 // 400), train_size=0.84, batch_size=128, accelerator="cpu",
        enable_progress_bar=False, logger=False,
    )  # fmt: skip
    module, held = model.module.eval(), model.validation_indices
    x = torch.from_numpy(counts[held])

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        zero = torch.zeros(len(x), 1, dtype=torch.int64)
        tensors = {"X": x, "batch": zero, "labels": zero}
        q, p = module(tensors, inference_kwargs={"n_samples": k}, compute_loss=False)
        log_p = p["px"].log_prob(x).sum(-1) + p["pz"].log_prob(q["z"]).sum(-1)
        return (log_p - q["qz"].log_prob(q["z"]).sum(-1)).view(k, len(x)).T

    def own(k: int) -> float:
        found = model.get_marginal_ll(
            indices=held, n_mc_samples=k, n_mc_samples_per_pass=k, batch_size=len(held)
        )
        return float(found)

    def ours(k: int, seed: int) -> LikelihoodEstimate:
        return estimate_from_log_weights(log_weights, x, k, seed=seed)

    def wider(factor: float, k: int, seed: int) -> LikelihoodEstimate:
        def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
            zero = torch.zeros(len(x), 1, dtype=torch.int64)
            with torch.no_grad():
                found = module.inference(x=x, batch_index=zero, n_samples=1)
                q = Normal(found["qz"].loc, factor * found["qz"].scale)
                z, library = q.sample((k,)), found["library"].expand(k, len(x), 1)
                p = module.generative(z=z, library=library, batch_index=zero)
                log_p = p["px"].log_prob(x).sum(-1) + p["pz"].log_prob(z).sum(-1)
            return (log_p - q.log_prob(z).sum(-1)).T

        return estimate_from_log_weights(log_weights, x, k, seed=seed)

    return Model(f"SCVI with {likelihood}", 500, own, ours, wider)


MODELS: dict[str, Callable[[int], Model]] = {
    "torch": of_torch,
    "zuko": of_zuko,
    "nflows": of_nflows,
    "pyro": of_pyro,
    "pythae": of_pythae,
    "nb": lambda steps: _scvi("nb", steps),
    "zinb": lambda steps: _scvi("zinb", steps),
}


def make(name: str, steps: int = 400) -> Model:
    """The model called so, trained in so many steps; ImportError without its library."""
    torch.manual_seed(TRAINED)
    with contextlib.redirect_stdout(io.StringIO()):
        return MODELS[name](steps)


# --- the table ------------------------------------------------------------------------------------


HEAD = """\
| model | its own estimate | here | standard errors apart | seconds | here |
|---|---|---|---|---|---|
"""


def row(model: Model, found: Compared) -> str:
    """Of the table."""
    return (
        f"| {model.title}, k = {found.ours.k:,} | {found.theirs:.3f} | {found.ours.mean:.3f} ± "
        f"{found.ours.mean_standard_error:.3f} | {found.distance:.1f} | {found.seconds[0]:.2f} | "
        f"{found.seconds[1]:.2f} |".replace("| -", "| −")
    )


def write(page: Path, rows: dict[str, str]) -> None:
    """Rows by title into the page's table, in the place of those of the same title."""
    table = page.read_text().partition(BEGIN)[2].partition(END)[0]
    kept = [line for line in table.strip().splitlines()[2:] if line.startswith("| ")]
    lines = ({line[2:].split(", k =")[0]: line for line in kept} | rows).values()
    put_between(page, HEAD + "".join(f"{line}\n" for line in lines), BEGIN, END)


def diagnose(model: Model) -> None:
    """Prints what a wider posterior makes of the estimate."""
    if model.wider is None:
        return
    for factor in (1.0, 1.5, 2.0):
        found = model.wider(factor, 2000, EVALUATED)
        heavy = int((found.pareto_k > MAX_PARETO_K).sum())
        print(
            f"{model.title}, deviations times {factor:g}: {found.mean:.3f} ± "
            f"{found.mean_standard_error:.3f}, k̂ above {MAX_PARETO_K:g} for {heavy} of "
            f"{len(found.pareto_k)}",
            flush=True,
        )


def main(names: list[str], wider: bool = False) -> int:
    """Prints each row as it is made, and writes the page; 1 if a pair does not agree."""
    rows, apart = {}, False
    torch.set_num_threads(1)
    for name in names:
        try:
            model = make(name)
        except ImportError as error:
            print(f"{name}: left out, for {error}", file=sys.stderr)
            continue
        if wider:
            diagnose(model)
            continue
        found = compare(model)
        rows[model.title] = row(model, found)
        apart |= found.distance > MOST
        print(rows[model.title], flush=True)
    if rows:
        write(PAGE, rows)
    return int(apart)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--wider", action="store_true", help="diagnose, and write nothing")
    given = parser.parse_args()
    chosen = given.names or list(MODELS)
    if wrong := set(chosen) - set(MODELS):
        parser.error(f"NAME must be one of {', '.join(MODELS)}; got {', '.join(sorted(wrong))}")
    sys.exit(main(chosen, given.wider))
