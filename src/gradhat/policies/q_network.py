"""Action values of discrete actions: networks that say Q(s, ·), and the actor that follows them.

A network answers with scores `[*N, A, K]`: K numbers for each action. With K = 1 the score is Q itself; with
K > 1 scores are the logits of a distribution over K returns, the atoms, and Q is its mean. Observations are
flat, float `[*N, O]`. Everything is computed in the dtype of the parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradhat.policies.mlp import HIDDEN_GAIN, MLP

LAST_GAIN = 1.0
"""Of the layer that says Q: its first answers are of the size of 1."""


class Plain(nn.Module):
    """One stream: the scores of all actions from one last layer."""

    def __init__(
        self, num_inputs: int, shape: tuple[int, int], hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        """`shape`: actions and atoms, (A, K)."""
        super().__init__()
        self.shape = shape
        sizes = (num_inputs, *hidden, shape[0] * shape[1])
        self.layers = MLP(sizes, activation=torch.relu_, last_gain=LAST_GAIN, generator=generator)

    def forward(self, observations: Tensor) -> Tensor:
        """Map `[*N, O]` to `[*N, A, K]`."""
        return self.layers(observations).unflatten(-1, self.shape)


class Dueling(nn.Module):
    """Two streams, one for the state and one for the actions in it: V(s) + A(s, a) − mean_a A(s, a).

    Source: Wang et al. 2016, eq. 9. Without the mean V and A are known only up to a constant between them.
    The streams share all hidden layers but the last, of which each has one of its own.
    """

    def __init__(
        self, num_inputs: int, shape: tuple[int, int], hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        """`shape`: actions and atoms, (A, K). `hidden` has at least one layer."""
        super().__init__()
        self.shape = shape
        *shared, own = hidden

        def layers(sizes: Sequence[int], last_gain: float) -> MLP:
            return MLP(sizes, activation=torch.relu_, last_gain=last_gain, generator=generator)

        # The last hidden layers of both streams are computed at once, side by side.
        self.shared = layers((num_inputs, *shared, 2 * own), HIDDEN_GAIN)
        self.value = layers((own, shape[1]), LAST_GAIN)
        self.adv = layers((own, shape[0] * shape[1]), LAST_GAIN)

    def forward(self, observations: Tensor) -> Tensor:
        """Map `[*N, O]` to `[*N, A, K]`."""
        of_state, of_actions = torch.relu_(self.shared(observations)).chunk(2, -1)
        adv = self.adv(of_actions).unflatten(-1, self.shape)
        return self.value(of_state)[..., None, :] + adv - adv.mean(-2, keepdim=True)


class Number(nn.Module):
    """Reads Q off scores with K = 1."""

    def forward(self, scores: Tensor) -> Tensor:
        """Map `[*N, A, 1]` to Q `[*N, A]`."""
        return scores[..., 0]


class Mean(nn.Module):
    """Reads Q off the logits of a distribution over K atoms, equally spaced from `low` to `high`."""

    atoms: Tensor

    def __init__(self, low: float, high: float, num_atoms: int) -> None:
        super().__init__()
        self.register_buffer("atoms", torch.linspace(low, high, num_atoms), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """Map `[*N, A, K]` to Q = Σ_k p_k z_k, `[*N, A]`."""
        # A matrix product rounds its rows differently on some processors, and actions that are alike then
        # no longer tie.
        return (scores.softmax(-1) * self.atoms).sum(-1)


class QNetwork(nn.Module):
    """Scores of actions, and Q read off them."""

    def __init__(self, scores: Plain | Dueling, read: Number | Mean) -> None:
        super().__init__()
        self.scores = scores
        self.read = read

    def forward(self, observations: Tensor) -> Tensor:
        """Return the scores of every action, `[*N, A, K]`, for observations `[*N, O]`."""
        return self.scores(observations)

    def q(self, observations: Tensor) -> Tensor:
        """Return Q(s, ·) `[*N, A]` for observations `[*N, O]`."""
        return self.read(self.scores(observations))


@dataclass
class EpsilonGreedy:
    """With probability ε any action, all alike; else the best one. ε falls while a run goes on."""

    network: QNetwork
    epsilon: float

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of `observations` `[N, O]`: int64 `[N]`, and its log-probability `[N]`.

        That is log(1 − ε + ε / A) of the best action, which can come by chance too, and log(ε / A) of others.
        """
        q = self.network.q(observations)
        best, (num_rows, num_actions) = q.argmax(-1), q.shape
        explores = torch.rand(num_rows, generator=generator) < self.epsilon
        anything = torch.randint(num_actions, (num_rows,), generator=generator)
        actions = torch.where(explores, anything, best)
        by_chance = self.epsilon / num_actions
        return actions, ((actions == best).to(q.dtype) * (1 - self.epsilon) + by_chance).log()

    @torch.no_grad()
    def greedy(self, observations: Tensor) -> Tensor:
        """Return the best action for each of `observations` `[N, O]`, the lowest of those that tie."""
        return self.network.q(observations).argmax(-1)
