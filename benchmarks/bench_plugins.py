"""What plugins cost: nothing on import, nothing while data flows, and once for each model whose layers need their rules."""

import subprocess
import sys
from time import perf_counter

import torch
from torch import nn

from nngeo_core import FIM, LayerCollection
from nngeo_core.plugins import Registry, registry

IMPORT = """
import sys, torch
from time import perf_counter
start = perf_counter()
import nngeo_core
seconds = perf_counter() - start
print(seconds, sum(name.startswith("nngeo") and name.endswith("plugin") for name in sys.modules))
"""


def imported() -> tuple[float, int]:
    """Return the seconds that `import nngeo_core` takes in a new process after torch, and how many plugins it loads."""
    found = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout.split()
    return float(found[0]), int(found[1])


class CountingRegistry(Registry):
    """Counts what it is asked for."""

    asked = 0

    def _ready(self) -> object:
        self.asked += 1
        return super()._ready()


class Import:
    """Import the core in a new process."""

    def track_plugins_loaded(self) -> int:
        """Return how many plugins are loaded by it: none."""
        return imported()[1]

    track_plugins_loaded.unit = "plugins"

    def track_seconds_after_torch(self) -> float:
        """Return the least of three times, torch being there."""
        return min(imported()[0] for _ in range(3))

    track_seconds_after_torch.unit = "seconds"


class LookUp:
    """Find the rules of a model with 400 modules, 200 of which have parameters."""

    def setup(self) -> None:
        """Make the model, and load the plugins."""
        layers = [layer for _ in range(100) for layer in (nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Identity())]
        self.model = nn.Sequential(*layers)
        self.inputs = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        registry.status()

    def time_load(self) -> None:
        """Time the first look-up of a registry, the modules of the plugins being imported."""
        Registry().status()

    def time_layer_collection(self) -> None:
        """Time a collection of all layers, which holds their rules."""
        LayerCollection.from_model(self.model)

    def track_microseconds_for_each_module(self) -> float:
        """Return the time of one look-up by type."""
        start = perf_counter()
        for _ in range(1000):
            registry.rule(nn.Linear)
        return (perf_counter() - start) * 1e3

    track_microseconds_for_each_module.unit = "microseconds"

    def track_look_ups_while_data_flows(self) -> int:
        """Return how often the registry is asked during a sweep over three batches: never."""
        generator = FIM(self.model, self.inputs, "diag", variant="regression").generator
        registry.__class__, kept = CountingRegistry, registry.__class__
        try:
            list(generator.stream([self.inputs] * 3))
            return vars(registry).pop("asked", 0)
        finally:
            registry.__class__ = kept

    track_look_ups_while_data_flows.unit = "look-ups"
