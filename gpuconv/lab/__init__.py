"""Any Numba kernel without a GPU: run thread by thread and watched, or as compiled PTX, instruction by instruction."""
