"""What outputs mean: metrics on them and the directions that are sent backward."""
