"""Kilo: a WireGuard mesh for Kubernetes."""

__version__ = "0.1.0"
