"""Models and guides of Pyro: trained by the importance-weighted bound, and evaluated.

The logarithm of the bound is taken for each row of a plate, whatever its subsample and whatever
stands outside of it; Pyro's own `RenyiELBO` raises the weights to the power of the plate's scale
first, and takes one logarithm of all rows where a site stands outside of the plate::

    elbo = ImportanceELBO(num_particles=50, estimator="dreg")
    svi = pyro.infer.SVI(model, guide, optimiser, elbo)
    svi.step(batch)
    estimate = estimate_log_likelihood(model, guide, x, k=5000)  # with Pareto k̂ of each row
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dvae_fast._checks import check_choice, check_size
from dvae_fast.evaluation import estimate_from_log_weights
from dvae_fast.functional import logmeanexp
from dvae_fast.integrations import library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dvae_fast.data.given import Data
    from dvae_fast.evaluation import LikelihoodEstimate

__all__ = ["ImportanceELBO", "LogWeights", "estimate_log_likelihood"]

_pyro: Any = library("pyro", "pyro-ppl", "1.9")
_infer: Any = library("pyro.infer", "pyro-ppl", "1.9")
_poutine: Any = library("pyro.poutine", "pyro-ppl", "1.9")
_checks: Any = library("pyro.util", "pyro-ppl", "1.9")

#: of the gradient, by name: the power to which a sample's weight is raised that the path through
#: the guide's samples has; None: the guide's density takes part too
_POWERS = {"standard": None, "stl": 1, "dreg": 2}


_PARTICLES = "num_particles_vectorized"  # as Pyro calls the plate of particles


class _Drawn(NamedTuple):
    """A latent's sample, and the leaf that stands in its place."""

    name: str
    z: Tensor
    leaf: Tensor


class _Parts(NamedTuple):
    """The log-densities of a model and a guide: log_p and log_q of each row, unscaled, (K, *rows);
    of what stands outside of them, called `names`, whose numbers are `shared` by all particles, (1,
    n); and the scale of the rows."""

    log_p: Tensor
    log_q: Tensor
    outside: Tensor
    scale: float
    names: frozenset[str]
    shared: Tensor

    def bound(self) -> Tensor:
        log_w = (self.log_p - self.log_q).movedim(0, -1).contiguous()
        return self.outside + self.scale * logmeanexp(log_w).sum()


class ImportanceELBO(_infer.ELBO):  # type: ignore[misc]
    """Σ over rows of log 1/K Σ_k w, K samples of each row of a plate: the bound of an IWAE.

    Sites outside of the plate are those of point estimates (`AutoDelta`, ``pyro.factor``): their
    log-densities are added once. A latent of which each particle has a value of its own must stand
    in the plate, for it would tie the rows together.

    Args:
        num_particles: K.
        plate: the name of the plate whose rows are the data. Default: all plates that hold every
            site.
        estimator: of the gradient: "standard"; "stl", which leaves out the score of the guide
            (Roeder et al., arXiv 1703.09194; biased if K > 1); or "dreg", doubly reparameterised,
            unbiased and of less noise (Tucker et al., arXiv 1810.04152).
        max_plate_nesting, vectorize_particles, retain_graph: as of `pyro.infer.ELBO`; particles
            are vectorised by default.

    Raises:
        ValueError: at the first loss: if no plate holds every site, or none has the name; if a
            site outside of it differs between particles; if a latent has no reparameterised
            sample.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), equation 8.
    """

    def __init__(
        self,
        num_particles: int = 5,
        *,
        plate: str | None = None,
        estimator: str = "dreg",
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        if plate is not None and not isinstance(plate, str):
            raise TypeError(f"plate must be the name of a plate, got {type(plate).__name__}")
        check_choice("estimator", estimator, _POWERS)
        self.plate, self.estimator = plate, estimator
        super().__init__(
            num_particles=check_size("num_particles", num_particles),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )

    # --- what Pyro calls ---

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """−bound."""
        return -float(self._parts(model, guide, (args, kwargs)).bound())

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """−bound, whose gradient is that of the estimator."""
        value, surrogate = self._losses(model, guide, args, kwargs)
        return value + surrogate - surrogate.detach()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """−bound; gradients are added to those of the parameters."""
        value, surrogate = self._losses(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward(retain_graph=self.retain_graph)
        return float(value)

    def log_weights(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """log p − log q of each particle and row, unscaled: (K, rows)."""
        parts = self._parts(model, guide, (args, kwargs))
        return (parts.log_p - parts.log_q).flatten(1)

    # --- the bound and its gradient ---

    def _losses(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """−bound, and what has the gradient of the estimator."""
        power = _POWERS[self.estimator]
        if power is None:
            parts = self._parts(model, guide, (args, kwargs))
            bound = parts.bound()
            return -bound.detach(), -bound
        drawn: list[_Drawn] = []
        parts = self._parts(model, guide, (args, kwargs), drawn)
        log_w = parts.log_p - parts.log_q
        weights = _normalised(log_w.detach())
        bound = parts.bound().detach()
        of_model = parts.outside + parts.scale * (weights * parts.log_p).sum()
        of_rows = parts.scale * (weights**power * log_w).sum()
        surrogate = of_model
        # A point estimate is no sample: it is a parameter, and has a parameter's gradient.
        for of_leaves, outside in ((of_rows, False), (of_model, True)):
            some = [d for d in drawn if d.z.requires_grad and (d.name in parts.names) is outside]
            leaves = [d.leaf for d in some]
            if not (leaves and of_leaves.requires_grad):
                continue
            slopes = torch.autograd.grad(of_leaves, leaves, retain_graph=True, allow_unused=True)
            for d, slope in zip(some, slopes, strict=True):
                if slope is not None:
                    surrogate = surrogate + (d.z * slope).sum()
        return -bound, -surrogate

    def _parts(
        self, model: Any, guide: Any, call: tuple[Any, Any], drawn: list[_Drawn] | None = None
    ) -> _Parts:
        """The log-densities of a run, whose `call` is args and kwargs; with `drawn`, as functions
        of leaves in the place of the guide's samples, which are added to it."""
        wide = self.vectorize_particles and self.num_particles > 1
        if wide and self.max_plate_nesting == math.inf:
            self._guess_max_plate_nesting(model, guide, *call)
        parts = []
        for _ in range(1 if self.vectorize_particles else self.num_particles):
            # Wrapped at each use: a plate is entered by one function at a time.
            of_model, of_guide = (
                self._vectorized_num_particles(fn) if wide else fn for fn in (model, guide)
            )
            traces = self._get_trace(of_model, of_guide, *call, drawn)
            dim = -self.max_plate_nesting if wide else None
            parts.append(_of_traces(*traces, self.plate, dim))
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        _check_same([part.shared for part in parts], "a site outside of the plate")
        return _Parts(
            torch.cat([part.log_p for part in parts]),
            torch.cat([part.log_q for part in parts]),
            first.outside,
            first.scale,
            first.names,
            first.shared,
        )

    def _guess_max_plate_nesting(self, *args: Any) -> None:
        """The first call draws what every other does: this draws for itself."""
        with torch.random.fork_rng():
            super()._guess_max_plate_nesting(*args)

    def _get_trace(
        self,
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
        drawn: list[_Drawn] | None = None,
    ) -> tuple[Any, Any]:
        def trace(fn: Any, values: Any = None) -> Any:
            fn = fn if values is None else _poutine.replay(fn, trace=values)
            return _poutine.trace(fn, graph_type="flat").get_trace(*args, **kwargs)

        of_guide = trace(guide)
        if drawn is not None:
            leaves = of_guide.copy()
            for name, site in _latents(of_guide):
                if not site["fn"].has_rsample:
                    raise ValueError(
                        f"estimator must be standard for a guide whose latents have no "
                        f"reparameterised sample, got {self.estimator} and {name}, of "
                        f"{type(site['fn']).__name__}"
                    )
                leaf = site["value"].detach().requires_grad_()
                leaves.nodes[name] = {**site, "value": leaf}  # a copy has the same sites
                drawn.append(_Drawn(name, site["value"], leaf))
            of_guide = trace(guide, leaves)
        of_model = trace(model, of_guide)
        if _infer.util.is_validation_enabled():
            _checks.check_model_guide_match(of_model, of_guide, self.max_plate_nesting)
            _checks.check_if_enumerated(of_guide)
        of_guide, of_model = map(_poutine.util.prune_subsample_sites, (of_guide, of_model))
        of_guide.compute_log_prob()
        of_model.compute_log_prob()
        for one in (of_guide, of_model) if _infer.util.is_validation_enabled() else ():
            for site in one.nodes.values():
                if site["type"] == "sample":
                    _checks.check_site_shape(site, self.max_plate_nesting)
        for name, site in _latents(of_guide):
            if not site["fn"].has_rsample and torch.is_grad_enabled():
                raise ValueError(
                    "a guide's latents must have reparameterised samples to be trained, got "
                    f"{name}, of {type(site['fn']).__name__}"
                )
        return of_model, of_guide


def _normalised(log_w: Tensor) -> Tensor:
    """Weights (K, *rows) that add up to 1 in each row, to 0 where all are 0."""
    largest = torch.logsumexp(log_w, 0, keepdim=True)
    return torch.where(largest == -math.inf, 0, torch.exp(log_w - largest))


def _samples(trace: Any) -> Iterator[tuple[str, Any]]:
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")


def _latents(trace: Any) -> Iterator[tuple[str, Any]]:
    """Those that are drawn; a plate's subsample is none."""
    for name, site in _samples(trace):
        if not site["is_observed"] and not _poutine.util.site_is_subsample(site):
            yield name, site


def _frames(site: Any) -> frozenset[Any]:
    """The plates that a site stands in, but for that of the particles."""
    return frozenset(f for f in site["cond_indep_stack"] if f.vectorized and f.name != _PARTICLES)


def _of_traces(of_model: Any, of_guide: Any, plate: str | None, particles: int | None) -> _Parts:
    """The log-densities of two traces; `particles` is the dimension of the particles, if any."""
    sites = [(name, site, 1.0) for name, site in _samples(of_model)]
    sites += [(name, site, -1.0) for name, site in _samples(of_guide)]
    rows = _rows([_frames(site) for _, site, _ in sites], plate)
    scale = math.prod((f.full_size or f.size) / f.size for f in rows)
    shape = [f.size for f in sorted(rows, key=lambda f: f.dim)]
    places = [f.dim for f in sorted(rows, key=lambda f: f.dim)]
    sums: dict[float, Any] = {1.0: torch.zeros(()), -1.0: torch.zeros(())}
    outside, names, shared = torch.zeros(()), set(), [torch.zeros(0)]
    for name, site, sign in sites:
        if rows <= _frames(site):
            log_prob = _poutine_scaled(site, scale)
            sums[sign] = sums[sign] + _reduced(log_prob, particles, places)
            continue
        names.add(name)
        one = _reduced(site["log_prob"], particles, [])
        what = f"the site {name}, outside of the plate"
        _check_same([one], what)
        if not site["is_observed"]:
            value = site["value"]
            if particles is not None:
                value = value.movedim(particles - len(site["fn"].event_shape), 0)
                _check_same([value], what)
            shared.append(value.detach().flatten())
        shared.append(one.detach().flatten())
        outside = outside + sign * one[0]
    count = max(len(t) if t.dim() else 1 for t in sums.values())
    log_p, log_q = (sums[sign].expand(count, *shape) for sign in (1.0, -1.0))
    together = torch.cat([t.double() for t in shared]).unsqueeze(0)
    return _Parts(log_p, log_q, outside, scale, frozenset(names), together)


def _rows(frames: list[frozenset[Any]], plate: str | None) -> frozenset[Any]:
    """The plates whose rows the bound takes logarithms of."""
    known = sorted({f.name for some in frames for f in some})
    inside = [some for some in frames if some]
    if plate is not None:
        inside = [some for some in frames if plate in {f.name for f in some}]
        if not inside:
            raise ValueError(f"plate must be one of the model's, {known}, got {plate!r}")
    if not inside:
        raise ValueError(
            "a site must stand in a pyro.plate with a dim, whose rows are the data; none does"
        )
    rows = frozenset.intersection(*inside)
    if not rows:
        raise ValueError(
            f"plate must be given where no plate holds every site: one of {known}; got None"
        )
    return rows


def _poutine_scaled(site: Any, scale: float) -> Tensor:
    """The log-density of a site as the model scales and masks it, but for the scale of the rows."""
    of_rows: Tensor = _pyro.distributions.util.scale_and_mask(
        site["unscaled_log_prob"], site["scale"] / scale, site["mask"]
    )
    return of_rows


def _reduced(log_prob: Tensor, particles: int | None, places: list[int]) -> Tensor:
    """(K, *rows) of a site's log-densities, in which K or a row is 1 where all are the same."""
    kept = [*([] if particles is None else [particles]), *places]
    missing = -min([*kept, -log_prob.dim()]) - log_prob.dim()
    wide = log_prob.reshape((1,) * missing + log_prob.shape)
    summed = [d for d in range(-wide.dim(), 0) if d not in kept]
    # sum(()) would be that of all dimensions.
    wide = wide.sum(summed, keepdim=True) if summed else wide
    ordered = wide.permute(*kept, *summed) if wide.dim() else wide
    ordered = ordered.reshape(ordered.shape[: len(kept)])
    return ordered if particles is not None else ordered.unsqueeze(0)


def _check_same(values: list[Tensor], what: str) -> None:
    """Raise ValueError unless particles, the first dimension of all together, are alike."""
    together = torch.cat([value.detach() for value in values])
    if not bool((together == together[:1]).all()):
        raise ValueError(
            f"{what} must be the same for all particles, a point estimate such as AutoDelta's: "
            "a latent that the rows share ties them together, so that none has a logarithm of its "
            "own"
        )


# --- evaluation -----------------------------------------------------------------------------------


class LogWeights:
    """Log-weights of a model and its guide, for `dvae_fast.estimate_from_log_weights`.

    Args:
        model, guide: of Pyro, called as (x), or as (x, context).
        plate: the name of the plate whose rows are the examples, as of `ImportanceELBO`.
    """

    def __init__(self, model: Any, guide: Any, *, plate: str | None = None) -> None:
        for name, value in (("model", model), ("guide", guide)):
            if not callable(value):
                raise TypeError(
                    f"{name} must be a function of Pyro's primitives, got {type(value).__name__}"
                )
        self.model, self.guide, self.plate = model, guide, plate
        self._nesting = math.inf

    def __call__(self, x: Tensor, k: int, seed: int, context: Tensor | None = None) -> Tensor:
        """(B, k) of the examples x."""
        args = (x,) if context is None else (x, context)
        elbo = ImportanceELBO(k, plate=self.plate, max_plate_nesting=self._nesting)
        if self._nesting == math.inf:
            elbo._guess_max_plate_nesting(self.model, self.guide, args, {})
            # The plate of the particles is counted too; the next one counts it by itself.
            self._nesting = elbo.max_plate_nesting - (k > 1)
        with torch.no_grad():
            return elbo.log_weights(self.model, self.guide, *args).T


def estimate_log_likelihood(
    model: Any, guide: Any, x: Data, k: int = 5000, *, plate: str | None = None, **options: Any
) -> LikelihoodEstimate:
    """log p(x) of each row of a plate, with its standard error, Pareto k̂ and the curve of bounds.

    The guide's parameters must be there: run it once, or train it. Sites outside of the plate must
    be point estimates, and are not counted.

    Args:
        model, guide: of Pyro, called as (x), or as (x, context).
        x: (N, *shape), the rows; N may be larger than what was trained on at once.
        k: importance samples a row.
        plate: its name. Default: all plates that hold every site.
        options: as for `dvae_fast.estimate_from_log_weights`.

    Raises:
        TypeError, ValueError: as there, and as `ImportanceELBO`.
    """
    weights = LogWeights(model, guide, plate=plate)
    return estimate_from_log_weights(weights, x, k, **options)
