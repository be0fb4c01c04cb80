"""How data flows: examples through a generator into accumulators."""
