"""Convolution, ReLU and max pooling in one kernel, and its gradients."""
