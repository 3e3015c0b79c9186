"""Small networks as policies: a distribution over actions, and beside it a critic of its own.

Observations are flat, float `[..., O]`. Everything is computed in the dtype of the parameters.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gradhat.policies.distributions import Categorical, Gaussian, categorical
from gradhat.policies.policy import Evaluation
from gradhat.trajectories import Trajectories

HIDDEN_GAIN = math.sqrt(2)
"""Orthogonal initialisation of hidden layers keeps the size of a signal through ReLU and tanh."""
POLICY_GAIN = 0.01
"""A small last layer makes the first policy nearly uniform, whatever it sees."""
VALUE_GAIN = 1.0


def members(parameters: nn.ParameterList) -> Iterable[Tensor]:
    """Return what is in the list. Its own iterator looks up names: half the time of a small network."""
    return parameters._parameters.values()  # pyright: ignore[reportPrivateUsage, reportReturnType]


class MLP(nn.Module):
    """Affine layers with an activation between them. Orthogonal initialisation, biases 0 (Saxe et al. 2014).

    The last layer has gain `last_gain` and no activation.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        last_gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weights = nn.ParameterList(torch.empty(out, into) for into, out in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(out) for out in sizes[1:])
        for weight in self.weights:
            gain = last_gain if weight is self.weights[-1] else HIDDEN_GAIN
            nn.init.orthogonal_(weight, gain, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., sizes[0]]` to `[..., sizes[-1]]`, in the dtype of the parameters."""
        *hidden, last = zip(members(self.weights), members(self.biases), strict=True)
        x = x.to(last[0].dtype)
        for weight, bias in hidden:
            x = self.activation(linear(x, weight, bias))
        return linear(x, *last)


class ActorCritic(nn.Module):
    """The parameters of `MLPPolicy`: actor, critic (or none), and log σ where actions are continuous."""

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        hidden: Sequence[int] = (64, 64),
        continuous: bool = False,
        critic: bool = True,
        log_std: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        """`num_outputs`: the number of discrete actions, or of the components of a continuous one."""
        super().__init__()
        sizes = (num_inputs, *hidden)
        self.actor = MLP((*sizes, num_outputs), last_gain=POLICY_GAIN, generator=generator)
        self.log_std = nn.Parameter(torch.full((num_outputs,), log_std)) if continuous else None
        self.critic = MLP((*sizes, 1), last_gain=VALUE_GAIN, generator=generator) if critic else None


@dataclass(frozen=True)
class MLPPolicy:
    """π_θ(a | s) = softmax of the actor's outputs, or a normal distribution around them."""

    module: ActorCritic

    def split(self, trajectories: Trajectories) -> list[slice]:
        """One micro-batch: small networks fit."""
        return [slice(None)] if len(trajectories) else []

    def examples(self, trajectories: Trajectories) -> Trajectories:
        """Return every own step as a row: without memory each can be evaluated alone."""
        return trajectories.steps()

    def distribution(self, trajectories: Trajectories) -> Categorical | Gaussian:
        """Return π_θ(· | s) at every step, parameters `[B, T, A]`, with gradient."""
        return self._distribution(_seen(trajectories))

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        """Log-probability, entropy and value of every step, `[B, T]`, with gradient; 0 where masked."""
        observations, mask = _seen(trajectories), trajectories.mask
        pi = self._distribution(observations)
        values = None if self.module.critic is None else torch.where(mask, self.values(observations), 0)
        return Evaluation(
            torch.where(mask, pi.logp(trajectories.actions), 0), torch.where(mask, pi.entropy(), 0), values
        )

    def values(self, observations: Tensor) -> Tensor:
        """Return V(s) for observations `[..., O]`, `[...]`, with gradient. ValueError without a critic."""
        if self.module.critic is None:
            raise ValueError("values were asked for: found no critic. Make the module with critic=True.")
        return self.module.critic(self._cast(observations))[..., 0]

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of `observations` `[N, O]`: `[N]` or `[N, A]`, and its log π `[N]`."""
        pi = self._distribution(observations)
        actions = pi.sample(generator)
        return actions, pi.logp(actions)

    @torch.no_grad()
    def greedy(self, observations: Tensor) -> Tensor:
        """Return the most probable action for each of `observations` `[N, O]`."""
        return self._distribution(observations).mode()

    def _distribution(self, observations: Tensor) -> Categorical | Gaussian:
        outputs = self.module.actor(self._cast(observations))
        if self.module.log_std is None:
            return categorical(outputs)
        return Gaussian(outputs, self.module.log_std)

    def _cast(self, observations: Tensor) -> Tensor:
        return observations.to(self.module.actor.weights[0].dtype)


def _seen(trajectories: Trajectories) -> Tensor:
    observations = trajectories.observations
    if not isinstance(observations, Tensor):
        raise ValueError(
            "a network was asked to read observations: found tuples of numbers. "
            "Pass a float tensor [B, T, O]; one-hot vectors for numbered states."
        )
    return observations
