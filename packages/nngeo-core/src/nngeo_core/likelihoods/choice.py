"""Which likelihood a user means: an object, a registered name, or what a loss leaves open."""

from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.empirical import Loss
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.plugins import registry

__all__ = ["chosen_likelihood", "likelihood_for_loss"]


def chosen_likelihood(choice: object) -> Likelihood:
    """The likelihood of a registered name, or the object itself.

    Raises:
        TypeError: It is neither.
        PluginError: The name is unknown.
    """
    if isinstance(choice, str):
        made: Likelihood = registry.likelihood(choice)()
        return made
    if not isinstance(choice, Likelihood):
        known = ", ".join(registry.names("likelihoods"))
        raise TypeError(f"a likelihood is a Likelihood object or a registered name ({known}), got {choice!r}")
    return choice


def likelihood_for_loss(variant: str | Likelihood | None, loss: Loss | None) -> Likelihood:
    """What the outputs of a model with a loss of the user's mean; None takes outputs of any shape as they are.

    Raises:
        ValueError: There is neither a likelihood nor a loss.
        TypeError: The loss cannot be called, or `variant` is no likelihood.
    """
    if loss is not None and not callable(loss):
        raise TypeError(
            f"loss maps outputs and targets to one loss for each example, shape (n,); got {type(loss).__name__}, which "
            "cannot be called"
        )
    if variant is None and loss is None:
        raise ValueError("give a `variant`, whose -log p(y | outputs) is the loss, or a `loss` of your own")
    return GaussianLikelihood() if variant is None else chosen_likelihood(variant)
