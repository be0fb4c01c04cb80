"""Vectors of the parameter space and of the function space."""
