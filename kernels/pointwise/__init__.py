"""Element by element: activations and their gradients."""
