"""Several processes at one computation: collectives that count what they exchange, and how work is shared out."""
