"""Device code: one file a kernel variant. Installed as ``gpuconv.kernels``.

``VARIANTS`` is the one table: operation -> variant name -> module name. Tests, benchmarks and tuning iterate it.
"""

if __name__ != "gpuconv.kernels":  # `import kernels` from the repository root would make a second copy
    raise ImportError("import this package as gpuconv.kernels (the folder kernels/ is mapped to that name)")

VARIANTS: dict[str, dict[str, str]] = {}
