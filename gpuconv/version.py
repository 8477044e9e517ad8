"""The version of the package, which everything may read without importing the package."""

__version__ = "0.2.0"
