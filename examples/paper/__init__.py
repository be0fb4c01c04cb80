"""The experiments of the NNGeometry paper (George 2021, section 3), and the same on two models that it does not have."""
