"""The compiled CPU backend: kernels in explicit vectors, compiled by Numba, and the threads that share them."""
