"""Softmax cross-entropy, its gradient, and the count of correct predictions."""
