"""The plugin module of nngeo-ntk: what it adds to nngeo's registry, nothing yet."""
