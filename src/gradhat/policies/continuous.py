"""Policies and action values for actions in a box, as DDPG, TD3 and SAC need them.

Inside, each component of an action lies in (−1, 1), where tanh puts it; outside in (low, high), by an affine
map. What leaves this page is outside, in the unit of the environment, and densities are of that too.
Observations are flat, float `[*N, O]`. Everything is computed in the dtype of the parameters.

Shapes: `C` critics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.special import log_ndtr

from gradhat.errors import ConfigError
from gradhat.policies.distributions import LOG_2PI
from gradhat.policies.mlp import HIDDEN_GAIN, MLP, POLICY_GAIN, members

LOG_STD = (-20.0, 2.0)
"""Bounds of log σ before tanh. Beyond 2 most actions are at the ends of the box."""
CRITIC_GAIN = 1.0
"""Of the layer that says Q: its first answers are of the size of 1."""


class Box(nn.Module):
    """Where actions lie, and the affine map from (−1, 1) to it, one for each component."""

    low: Tensor
    high: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        """`low` and `high` are `[A]`. ConfigError unless both are finite and low < high."""
        super().__init__()
        low, high = low.to(torch.get_default_dtype()), high.to(torch.get_default_dtype())
        if not bool((low < high).all() & (high - low).isfinite().all()):
            raise ConfigError(
                f"squash actions into a box: found the bounds {low.tolist()} and {high.tolist()}. Give each "
                "component finite bounds, low < high (gymnasium.wrappers.RescaleAction does), or use an "
                "algorithm with an unbounded policy, such as PPO."
            )
        values = {"low": low, "high": high, "center": (high + low) / 2, "scale": (high - low) / 2}
        for name, tensor in values.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, inside: Tensor) -> Tensor:
        """Map `[*N, A]` from (−1, 1) to the box."""
        return torch.addcmul(self.center, self.scale, inside)

    def inside(self, actions: Tensor) -> Tensor:
        """Map `[*N, A]` from the box back to [−1, 1]: actions without their unit."""
        return (actions - self.center) / self.scale

    def clip(self, actions: Tensor) -> Tensor:
        """Return the nearest actions in the box."""
        return torch.clamp(actions, self.low, self.high)


class Uniform(nn.Module):
    """Any action in the box, all alike: what fills a memory before there is anything to follow."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.box = box

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of `observations` `[N, O]`: `[N, A]`, and its log-density `[N]`."""
        scale = self.box.scale
        drawn = torch.rand(len(observations), len(scale), dtype=scale.dtype, generator=generator)
        return self.box(2 * drawn - 1), -(2 * scale).log().sum().expand(len(observations))


class Deterministic(nn.Module):
    """μ(s) = center + scale · tanh(network(s)): the actor of DDPG and TD3."""

    def __init__(
        self, num_inputs: int, box: Box, *, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.box = box
        sizes = (num_inputs, *hidden, len(box.low))
        self.layers = MLP(sizes, activation=torch.relu_, last_gain=POLICY_GAIN, generator=generator)

    def forward(self, observations: Tensor) -> Tensor:
        """Return μ(s) `[*N, A]`, with gradient."""
        return self.box(self.layers(observations).tanh())

    @torch.no_grad()
    def greedy(self, observations: Tensor) -> Tensor:
        """Return μ(s) for each of `observations` `[N, O]`."""
        return self(observations)


@dataclass
class Noisy:
    """μ(s) plus Gaussian noise, clipped to the box. σ is `noise` · scale of each component, noise > 0."""

    policy: Deterministic
    noise: float

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of `observations` `[N, O]`: `[N, A]`, and its log-probability `[N]`.

        Clipping gathers probability at the bounds: the log-probability of a component there is that of
        everything beyond, elsewhere it is the log-density.
        """
        mean, box = self.policy(observations), self.policy.box
        std = self.noise * box.scale
        noise = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
        actions = box.clip(torch.addcmul(mean, std, noise))
        density = -((actions - mean) / std).square() / 2 - std.log() - LOG_2PI / 2
        above = torch.where(actions >= box.high, log_ndtr((mean - box.high) / std), density)
        return actions, torch.where(actions <= box.low, log_ndtr((box.low - mean) / std), above).sum(-1)


class SquashedGaussian(nn.Module):
    """a = center + scale · tanh(u), u ~ N(μ(s), σ(s)²), components independent: the actor of SAC.

        log π(a | s) = Σ_i [ log N(u_i; μ_i, σ_i²) − log(1 − tanh² u_i) − log scale_i ]

    Source: Haarnoja et al. 2018, appendix C. log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u)), which stays
    exact where tanh u rounds to 1.
    """

    def __init__(
        self, num_inputs: int, box: Box, *, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.box = box
        sizes = (num_inputs, *hidden, 2 * len(box.low))
        self.layers = MLP(sizes, activation=torch.relu_, last_gain=POLICY_GAIN, generator=generator)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ(s) and log σ(s), `[*N, A]` each, before the tanh, with gradient."""
        mean, log_std = self.layers(observations).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def sample(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw actions `[*N, A]` and return their log π `[*N]`, both with gradient (reparametrised)."""
        mean, log_std = self(observations)
        noise = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
        u = torch.addcmul(mean, log_std.exp(), noise)
        gaussian = -noise.square() / 2 - log_std - LOG_2PI / 2
        log_slope = 2 * (math.log(2) - u - softplus(-2 * u)) + self.box.scale.log()
        return self.box(u.tanh()), (gaussian - log_slope).sum(-1)

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of `observations` `[N, O]`: `[N, A]`, and its log π `[N]`."""
        return self.sample(observations, generator)

    @torch.no_grad()
    def greedy(self, observations: Tensor) -> Tensor:
        """Return the action of the mean for each of `observations` `[N, O]`: the median of each component."""
        return self.box(self(observations)[0].tanh())


class ContinuousQ(nn.Module):
    """Q_c(s, a) of C critics that share nothing, in one batched set of weights: one product for all.

    The network sees actions in [−1, 1], whatever their unit: a box a thousand times as wide is the same
    problem of optimisation.
    """

    def __init__(
        self,
        num_inputs: int,
        box: Box,
        *,
        num_critics: int,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        """`box` is where actions lie. Orthogonal initialisation, each critic its own; biases 0."""
        super().__init__()
        self.box = box
        sizes = (num_inputs + len(box.low), *hidden, 1)
        self.num_critics = num_critics
        self.weights = nn.ParameterList(torch.empty(num_critics, into, out) for into, out in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(num_critics, 1, out) for out in sizes[1:])
        for weight in self.weights:
            gain = CRITIC_GAIN if weight.shape[-1] == 1 else HIDDEN_GAIN
            for critic in weight.detach():
                nn.init.orthogonal_(critic, gain, generator=generator)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return Q_c(s, a) `[C, B]` for observations `[B, O]` and actions `[B, A]`, with gradient."""
        return self._answer(observations, actions, self.num_critics)

    def first(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return the Q of the first critic alone, `[B]`, with gradient."""
        return self._answer(observations, actions, 1)[0]

    def _answer(self, observations: Tensor, actions: Tensor, count: int) -> Tensor:
        *hidden, last = (
            (weight[:count], bias[:count])
            for weight, bias in zip(members(self.weights), members(self.biases), strict=True)
        )
        x = torch.cat([observations, self.box.inside(actions)], -1).to(last[0].dtype).expand(count, -1, -1)
        for weight, bias in hidden:
            x = torch.baddbmm(bias, x, weight).relu_()
        return torch.baddbmm(last[1], x, last[0])[..., 0]
