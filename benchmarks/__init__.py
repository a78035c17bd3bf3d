"""Benchmarks of radiodata beside its peers: ``python -m benchmarks list``."""
