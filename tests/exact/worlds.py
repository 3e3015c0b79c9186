"""Random worlds and policies for the properties that must hold in all of them."""

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from gradhat.exact.mdp import TabularMDP
from gradhat.exact.zoo import random_mdp

SEEDS = st.integers(0, 10**6)


@st.composite
def worlds(
    draw: st.DrawFn, *, horizons: st.SearchStrategy[int | None], max_gamma: float = 0.95
) -> TabularMDP:
    """A GARNET world: with or without a discount, a horizon, terminal states and look-alike states."""
    num_states = draw(st.integers(2, 4))
    mdp = random_mdp(
        num_states,
        draw(st.integers(2, 3)),
        seed=draw(SEEDS),
        gamma=draw(st.sampled_from([0.0, 0.5, 0.9, max_gamma])),
        horizon=draw(horizons),
        branching=draw(st.integers(1, 2)),
        num_observations=draw(st.integers(1, num_states)),
        num_terminal=draw(st.integers(0, 1)),
    )
    return replace(mdp, gamma=1.0) if mdp.horizon is not None and draw(st.booleans()) else mdp


def random_theta(mdp: TabularMDP, seed: int) -> Tensor:
    """Logits `[O, A]`, standard normal."""
    generator = torch.Generator().manual_seed(seed)
    shape = (mdp.num_observations, mdp.num_actions)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_policy(mdp: TabularMDP, seed: int) -> Tensor:
    """π(a | s) `[S, A]` by state, whatever the policy can see."""
    generator = torch.Generator().manual_seed(seed)
    shape = (mdp.num_states, mdp.num_actions)
    return torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)


def deterministic(actions: tuple[int, ...], num_actions: int) -> Tensor:
    """The policy `[S, A]` that takes `actions`, one per state."""
    return torch.nn.functional.one_hot(torch.tensor(actions), num_actions).double()
