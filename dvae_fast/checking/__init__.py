"""Whether the compiled operators are right on this machine: `dvae_fast.check`."""
