"""Federated learning over the SSH you already have."""

__version__ = "0.1.0"
