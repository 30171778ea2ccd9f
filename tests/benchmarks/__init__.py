"""Measurements, made on the machine that they speak of: `python -m tests.benchmarks [--quick]`."""
