"""Convolution and its gradients: one file a variant."""
