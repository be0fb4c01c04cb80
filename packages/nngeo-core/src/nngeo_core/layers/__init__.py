"""Which parameters a model has, layer by layer, and the rules that differentiate them."""
