"""The waist: Jacobians of layers, in the structure that each layer gives them."""
