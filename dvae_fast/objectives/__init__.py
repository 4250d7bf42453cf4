"""How log-weights become a bound and a loss: the one place that knows K in from K out.

With log w = log p(x|z) + log p(z) − log q(z|x̃), K samples z in each of M groups. A group is a
corruption x̃ of the example; in a model without corruption it is one more draw of K samples from
the same posterior. Every bound is made of log-means of a temperature t,

    T_t(w) = 1/t log mean w^t,    T_0 = mean of log w,    T_∞ = max log w,

*nested* (over the K samples of a group, then a mean over the M groups) or *joint* (over all M·K):

================ ============================================ =====================================
objective        the bound                                    source
================ ============================================ =====================================
``elbo``         T_0; the (denoising) variational bound       Kingma and Welling 2013 (1312.6114),
                                                              eq. 3; Im et al. 2015 (1511.06406)
``elbo_kl``      mean log p(x|z) − KL(q || p), KL analytic    the same
``iwae``         T_1, nested: the (denoising)                 Burda et al. 2015 (1509.00519), eq. 8;
                 importance-weighted bound; with M groups     Im et al. 2015, section 3.1;
                 and no corruption it is MIWAE(M, K)          Rainforth et al. 2018 (1802.04537)
``iwae_joint``   T_1, joint: tighter, and still a bound,      Burda et al. 2015, eq. 8
                 each w having its own q(z|x̃) below
``ciwae``        β T_0 + (1 − β) T_1, nested                  Rainforth et al. 2018
``piwae``        T_1, joint, for the generative net; the      Rainforth et al. 2018
                 inference net ascends T_1 nested (MIWAE)
``vr``           T_(1−α), nested: α = 0 is iwae, 1 is elbo    Li and Turner 2016 (1602.02311)
``vr_max``       T_∞, nested: α → −∞                          Li and Turner 2016
``mixture``      T_1, joint, with 1/M Σ_m q(z|x̃_m) below,     Im et al. 2015: the posterior that
                 the density that z is drawn from             corruption makes of q
``mixture_elbo`` T_0, joint, with the same below: MISELBO     Kviman et al. 2022 (2202.10951)
                 of the M components
``sivi``         T_1, joint, with 1/(J+1) (q(z|x̃_m) + Σ_j     Yin and Zhou 2018 (1805.11183); with
                 q(z|x̃_j)) below, of J further corruptions    several samples Molchanov et al. 2018
                                                              (1810.02789)
``sivi_elbo``    T_0, joint, with the same below              the same
``iwhvi``        T_1, joint, with 1/(J+1) Σ_j                 Sobolev and Vetrov 2019 (1905.03290);
                 p(x̃_j|x) q(z|x̃_j) / τ(x̃_j|z, x) below, of    with J = 0 Ranganath et al. 2015
                 x̃_m and J draws of a learnt τ for each z     (1511.02386)
``iwhvi_elbo``   T_0, joint, with the same below              the same
================ ============================================ =====================================

All are below log p(x) in expectation but ``vr`` for α < 0 and ``vr_max``, which are above the
importance-weighted bound and may be above log p(x).

Gradient estimators of the inference network φ; the generative network always has the bound's
own gradient, coefficients c = ∂bound/∂log w, w̃ = w / Σ w where the bound is ``iwae``:

- ``standard``: the reparameterised gradient.
- ``stl``: sticking the landing (Roeder et al. 2017, 1703.09194): log q's explicit dependence on φ
  is dropped. Unbiased where c is constant, ``elbo`` and the mixtures' ``…_elbo``; biased for every
  bound with K inside the logarithm, since the dropped score function is there correlated with c.
- ``dreg``: doubly reparameterised (Tucker et al. 2018, 1810.04152): c − ∂c/∂log w in the place of
  c, w̃² for ``iwae``, on the path through z alone. Unbiased; for ``elbo`` it is ``stl``.
- ``vimco``: score function with a leave-one-out baseline (Mnih and Rezende 2016, 1602.06725), in
  O(K); unbiased, and needs no reparameterisation.

Numbers in brackets are arXiv's.
"""

from dvae_fast.objectives.bound import bound
from dvae_fast.objectives.latents import Latents, sample_latents
from dvae_fast.objectives.loss import loss
from dvae_fast.objectives.objective import ESTIMATORS, OBJECTIVES, Bound, Objective, as_objective
from dvae_fast.objectives.outer import Reversed

__all__ = [
    "ESTIMATORS",
    "OBJECTIVES",
    "Bound",
    "Latents",
    "Objective",
    "Reversed",
    "as_objective",
    "bound",
    "loss",
    "sample_latents",
]
