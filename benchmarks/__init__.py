"""The asv suite: `nox -s bench` runs it once in the development environment."""
