"""Layer rules: one file for each type of layer."""
