"""Bucket-Level multi-objective optimisation for multilingual training on Megatron-Core."""

__version__ = "0.1.0"
