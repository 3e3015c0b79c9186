"""Distributions over actions: what a policy's head parametrises.

`*N` is any batch shape. Log-probabilities and entropies are `[*N]`, in nats; those of an action vector are
summed over its components, which are independent given the state. Densities are with respect to the action
as sampled, before it is clipped to any bounds.
"""

import math
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from gradhat.errors import ModelError

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """π(· | s) for a batch of states."""

    def logp(self, actions: Tensor) -> Tensor:
        """Return log π(a | s) of `actions`, `[*N]`."""
        ...

    def entropy(self) -> Tensor:
        """Return −E log π, `[*N]`."""
        ...

    def kl(self, other: Self) -> Tensor:
        """Return KL(self ‖ other) ≥ 0, `[*N]`."""
        ...

    def mode(self) -> Tensor:
        """Return the most probable action."""
        ...

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw an action, without gradient."""
        ...

    def detach(self) -> Self:
        """Return the same distribution as data."""
        ...


class Categorical(NamedTuple):
    """One of A actions. Use `categorical` to make it from logits."""

    log_probs: Tensor
    """`[*N, A]`, normalised."""

    def logp(self, actions: Tensor) -> Tensor:
        return self.log_probs.gather(-1, actions[..., None])[..., 0]

    def entropy(self) -> Tensor:
        # An action that is never taken, log p = −inf, adds 0 to the entropy, not 0 · −inf.
        return -(self.log_probs.exp() * self.log_probs.clamp(min=torch.finfo(self.log_probs.dtype).min)).sum(
            -1
        )

    def kl(self, other: Self) -> Tensor:
        apart = torch.where(self.log_probs == -math.inf, 0, self.log_probs - other.log_probs)
        return (self.log_probs.exp() * apart).sum(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """ModelError where the probabilities are not finite."""
        probs = self.log_probs.detach().exp()
        try:
            flat = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=generator)
        except RuntimeError as error:
            if bool(probs.isfinite().all()):
                raise
            raise ModelError(
                "draw an action: found probabilities that are not finite. The policy has diverged; train it "
                "with a smaller learning rate."
            ) from error
        return flat.reshape(probs.shape[:-1])

    def detach(self) -> Self:
        return type(self)(self.log_probs.detach())


def categorical(logits: Tensor) -> Categorical:
    """Return softmax(logits), logits `[*N, A]`."""
    return Categorical(logits.log_softmax(-1))


class Gaussian(NamedTuple):
    """A normal distribution with independent components."""

    mean: Tensor
    """`[*N, A]`."""
    log_std: Tensor
    """`[*N, A]`, or `[A]` where it does not depend on the state."""

    def logp(self, actions: Tensor) -> Tensor:
        z = (actions - self.mean) * (-self.log_std).exp()
        return -(z.square() / 2 + self.log_std + LOG_2PI / 2).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + (LOG_2PI + 1) / 2).expand_as(self.mean).sum(-1)

    def kl(self, other: Self) -> Tensor:
        ratio = (2 * (self.log_std - other.log_std)).exp()
        apart = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return ((ratio + apart - 1) / 2 + other.log_std - self.log_std).sum(-1)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator) -> Tensor:
        mean = self.mean.detach()
        noise = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
        return mean + self.log_std.detach().exp() * noise

    def detach(self) -> Self:
        # log σ may be a parameter: a view of it would move with the policy.
        return type(self)(self.mean.detach(), self.log_std.detach().clone())
