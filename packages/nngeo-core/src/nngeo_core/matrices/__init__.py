"""What comes out: matrices and maps on parameter space and function space, abstract."""
