"""Fully connected layers with what stands between them in one kernel, and their gradients."""
