"""The CUDA backend: plans (which variant and tiling, its launches, made once), launching, and graphs of launches."""
