"""Runs any Numba CUDA kernel without a GPU: its Python code thread by thread, or its compiled PTX."""
