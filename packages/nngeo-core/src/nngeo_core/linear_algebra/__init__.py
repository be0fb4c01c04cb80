"""Numerical building blocks on plain tensors."""
