"""The optimizers' updates of parameters."""
