"""The log-likelihood of a model, estimated."""
