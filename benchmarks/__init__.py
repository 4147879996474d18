"""Benchmarks: they import the package, never the other way round."""
