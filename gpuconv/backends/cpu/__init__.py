"""The compiled CPU backend: kernels with explicit vectors, compiled by Numba, and the threads that run them."""
