"""Batch normalisation, with the addition and the ReLU behind it, and its gradients."""
