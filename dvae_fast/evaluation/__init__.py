"""The log-likelihood of a model, estimated."""

from dvae_fast.evaluation.annealed import annealed_importance_sampling, bidirectional_monte_carlo
from dvae_fast.evaluation.annealed_results import AISEstimate, BidirectionalEstimate
from dvae_fast.evaluation.engine import CURVE
from dvae_fast.evaluation.expectation import (
    Expectation,
    ExpectationOptions,
    importance_expectation,
    impute,
)
from dvae_fast.evaluation.function import estimate_from_log_weights
from dvae_fast.evaluation.importance import DTYPES, estimate_log_likelihood
from dvae_fast.evaluation.progress import EvaluationProgress
from dvae_fast.evaluation.proposals import PROPOSALS, Proposal
from dvae_fast.evaluation.results import Estimate, LikelihoodEstimate
from dvae_fast.evaluation.smoothing import pareto_smoothed
from dvae_fast.evaluation.statistics import (
    MAX_PARETO_K,
    MIN_ESS,
    BoundCurve,
    ParetoTail,
    pareto_shape,
)
from dvae_fast.evaluation.target import EncoderDecoder, Evaluated

#: its name in short
bidirectional = bidirectional_monte_carlo

__all__ = [
    "CURVE",
    "DTYPES",
    "MAX_PARETO_K",
    "MIN_ESS",
    "PROPOSALS",
    "AISEstimate",
    "BidirectionalEstimate",
    "BoundCurve",
    "EncoderDecoder",
    "Estimate",
    "Evaluated",
    "EvaluationProgress",
    "Expectation",
    "ExpectationOptions",
    "LikelihoodEstimate",
    "ParetoTail",
    "Proposal",
    "annealed_importance_sampling",
    "bidirectional",
    "bidirectional_monte_carlo",
    "estimate_from_log_weights",
    "estimate_log_likelihood",
    "importance_expectation",
    "impute",
    "pareto_shape",
    "pareto_smoothed",
]
