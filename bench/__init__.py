"""Benchmarks: scripts that time gpuconv, alone or beside other libraries. Not installed; run from the repository root.

``bench/README.md`` says how they measure and what their JSON files hold.
"""
