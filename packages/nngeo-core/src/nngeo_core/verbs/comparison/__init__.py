"""What `compare_representations` is made of."""
