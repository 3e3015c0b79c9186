"""Every trajectory of a finite world, and every batch of them, with their probabilities.

`paths` lists the trajectories, `draws` the batches. Where there are too many, `sampled` and `simulated` give
batches at random and say so.

Letters: `N` trajectories, `T` steps, `M` batches (draws), `G` trajectories in each, `B` = M · G rows,
`P` = O · A parameters: the logits θ of a softmax policy. All is float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gradhat.exact.choices import MULTISETS, Listing, check_sizes, groups, written
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.shapes import check_same

PATHS_LIMIT = 200_000
"""Most trajectories that `paths` lists."""
DRAWS_LIMIT = 1_000_000
"""Most batches that `draws` and `counted` list."""
CHUNK = 1_000_000
"""Numbers in one array while batches are evaluated; there are a dozen arrays."""
MANY = 1e300
"""Where counting stops, short of the largest float."""


@dataclass(frozen=True, eq=False)
class Paths:
    """`N` trajectories of at most `T` steps. After the end all is 0."""

    world: Float[Tensor, " N"]
    """The probability of the world's part: the start state and every transition."""
    states: Int[Tensor, "N T"]
    """The first is the start state, even where it is terminal and there is no step."""
    observations: Int[Tensor, "N T"]
    actions: Int[Tensor, "N T"]
    rewards: Float[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    """The policy's own steps: not after the end, not where the world moves by itself."""
    terminated: Bool[Tensor, "N T"]
    """Where the step leads to a terminal state, or is the last one before the horizon."""
    truncated: Bool[Tensor, "N T"]
    """At the time limit, where the trajectory has not ended: it goes on, and nobody looks."""
    final: Int[Tensor, " N"]
    """The state in which the trajectory ended or was cut: what follows its last step."""
    gamma: float

    def __len__(self) -> int:
        return self.actions.shape[0]

    def logp(self, theta: Tensor) -> Tensor:
        """Return log π(a_t | o_t) `[N, T]` of the logits θ `[O, A]`, with gradient; 0 where masked.

        ValueError if θ has too few rows or columns for what happens here.
        """
        least = (int(self.observations.max()) + 1, int(self.actions.max()) + 1)
        if theta.dim() != 2 or theta.shape[0] < least[0] or theta.shape[1] < least[1]:
            raise ValueError(
                f"theta {tuple(theta.shape)} with trajectories of {least[0]} observations and {least[1]} "
                "actions: pass logits [O, A], a row per observation of the world."
            )
        logp = theta.double().log_softmax(-1)[self.observations, self.actions]
        return torch.where(self.mask, logp, 0)

    def probability(self, theta: Tensor) -> Tensor:
        """Return the probability of each trajectory `[N]` under the logits θ, with gradient."""
        return self.world * self.logp(theta).sum(-1).exp()

    def returns(self) -> Tensor:
        """Return R(τ) = Σ_t γ^t r_t `[N]`; t counts every step of the world. Up to the cut, where there is
        one."""
        return discounted_sum(self.rewards, self.gamma)

    def select(self, rows: Tensor) -> "Paths":
        """Return the trajectories at `rows` `[n]`."""
        return Paths(
            world=self.world[rows],
            states=self.states[rows],
            observations=self.observations[rows],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            mask=self.mask[rows],
            terminated=self.terminated[rows],
            truncated=self.truncated[rows],
            final=self.final[rows],
            gamma=self.gamma,
        )


Seen = TypeVar("Seen", bound="Outcomes")


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What came of `M` draws of `G` trajectories, row after row: rewards, lengths and ends. B = M · G.

    It is what credit may look at where trajectories are counted by class. An estimator gives each draw its
    own answer: rows of different draws must not mix.
    """

    rewards: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    terminated: Bool[Tensor, "B T"]
    truncated: Bool[Tensor, "B T"]
    group: Int[Tensor, " B"]
    """Which trajectories were drawn together, from one start state."""
    draw: Int[Tensor, " B"]
    """Which draw a row belongs to, 0 to M - 1."""
    num_draws: int
    """M."""
    gamma: float

    def returns(self) -> Float[Tensor, " B"]:
        """Return R(τ) = Σ_t γ^t r_t; t counts every step of the world."""
        return discounted_sum(self.rewards, self.gamma)

    def alone(self: "Seen", draw: int) -> "Seen":
        """Return one draw as a batch of its own."""
        rows = slice(draw * (size := len(self.draw) // self.num_draws), (draw + 1) * size)
        return replace(self, **self.cut(rows), num_draws=1)

    def cut(self, rows: slice) -> dict[str, Any]:
        """Return the columns at `rows` by name, group and draw counted from 0."""
        return {
            "rewards": self.rewards[rows],
            "mask": self.mask[rows],
            "terminated": self.terminated[rows],
            "truncated": self.truncated[rows],
            "group": self.group[rows] - self.group[rows.start],
            "draw": self.draw[rows] - self.draw[rows.start],
        }


@dataclass(frozen=True, eq=False)
class Batch(Outcomes):
    """Draws with all that happened in them: what an estimator sees where every batch is listed."""

    paths: Paths
    """Of the `B` rows."""
    theta: Float[Tensor, "O A"]
    """Where the gradient is taken."""
    logp: Float[Tensor, "B T"]
    """Under θ."""
    logp_old: Float[Tensor, "B T"]
    """Under the policy that sampled."""

    def cut(self, rows: slice) -> dict[str, Any]:
        """Return the columns at `rows` by name, group and draw counted from 0."""
        index = torch.arange(len(self.draw))[rows]
        more = {"paths": self.paths.select(index), "logp": self.logp[rows], "logp_old": self.logp_old[rows]}
        return super().cut(rows) | more

    def score(self, weights: Shaped[Tensor, "B T"]) -> Float[Tensor, "M P"]:
        """Return Σ_i Σ_t w_it ∇_θ log π(a_it | o_it) of each draw, `[M, P]`, for weights `[B, T]`.

        A weight where the mask is false counts as 0. ValueError if the weights have another shape.
        """
        paths, (num_observations, num_actions) = self.paths, self.theta.shape
        check_same(weights=weights, mask=self.mask)
        weights = torch.where(self.mask, weights.double(), 0)
        # ∇ log π(a | o) is 1 at (o, a), less π in the whole row o: each is summed over steps by itself.
        row = self.draw[:, None] * num_observations + paths.observations
        place = (row * num_actions + paths.actions).flatten()
        rows = weights.new_zeros(self.num_draws * num_observations)
        ones = weights.new_zeros(self.num_draws * num_observations * num_actions)
        rows.index_add_(0, row.flatten(), weights.flatten())
        ones.index_add_(0, place, weights.flatten())
        policy = self.theta.detach().double().softmax(-1)
        ones, rows = ones.reshape(-1, *policy.shape), rows.reshape(-1, num_observations, 1)
        return torch.addcmul(ones, rows, policy, value=-1).flatten(1)


@dataclass(frozen=True, eq=False)
class Draws:
    """Batches of `G` trajectories with their probabilities. They sum to 1."""

    paths: Paths
    theta: Float[Tensor, "O A"]
    theta_old: Float[Tensor, "O A"]
    rows: Int[Tensor, "M G"]
    """Trajectories of each batch, as rows of `paths`."""
    group_size: int
    """How many neighbours in a row share a start state."""
    probability: Float[Tensor, " M"]
    """In a sample, 1 / M each."""
    exact: bool
    """Whether the batches are all that can happen, or a sample."""

    def batches(self) -> Iterator[tuple[Tensor, Batch]]:
        """Yield the draws in parts that fit in memory, each with the probabilities `[m]` of its draws."""
        logp, logp_old = self.paths.logp(self.theta), self.paths.logp(self.theta_old)
        per_draw = max(self.theta.numel(), self.rows.shape[1] * self.paths.rewards.shape[1])
        size = max(1, CHUNK // per_draw)
        for rows, probability in zip(self.rows.split(size), self.probability.split(size), strict=True):
            yield probability, batch(self.paths, self.theta, logp, logp_old, rows, self.group_size)


def paths(mdp: TabularMDP, *, limit: int = PATHS_LIMIT) -> Paths:
    """Return every trajectory that has a positive probability under a policy that tries everything.

    Where the world moves by itself there is one action, not A. A trajectory that starts in a terminal state
    has no step. ValueError if there are more than `limit`, or endlessly many: a loop without a horizon or a
    time limit.
    """
    number = count_paths(mdp)
    if number > limit:
        found = "endlessly many: a loop without a horizon" if number == math.inf else written(number)
        raise ValueError(
            f"enumerate all trajectories: found {found}; the limit is {limit}. Use a smaller world or a "
            "shorter horizon, or sample instead."
        )
    ways = _ways(mdp)
    state = (mdp.start > 0).nonzero()[:, 0]
    world = mdp.start[state]
    steps: list[tuple[Tensor, ...]] = []
    while not steps or _goes_on(mdp, state, len(steps)):
        parent, way = _onward(ways[0], state)
        before, action, following = ways[:, way]
        world = world[parent] * mdp.transition[before, action, following]
        steps.append((parent, before, action, following))
        state = following
    return _columns(mdp, world, *_unrolled(steps))


def count_paths(mdp: TabularMDP) -> float:
    """Return how many trajectories there are; infinity for a loop without a horizon or a time limit.

    Counting is exact up to 2^53 and stops at `MANY`.
    """
    before, _, following = _ways(mdp)
    goes_on = (~mdp.terminal[before]).double()
    open_, total = (mdp.start > 0).double(), 0.0
    for _ in range(mdp.max_steps or mdp.num_states + 1):
        total += float(open_[mdp.terminal].sum())
        open_ = torch.zeros_like(open_).index_add(0, following, open_[before] * goes_on).clamp(max=MANY)
        if not bool((open_ > 0).any()):
            return total
    return math.inf if mdp.max_steps is None else total + float(open_.sum())


def batch(
    paths: Paths, theta: Tensor, logp: Tensor, logp_old: Tensor, rows: Tensor, group_size: int
) -> Batch:
    """Return the draws `rows` `[M, G]` as one batch. `logp` and `logp_old` are `[N, T]`."""
    flat = rows.flatten()
    chosen = paths.select(flat)
    return Batch(
        rewards=chosen.rewards,
        mask=chosen.mask,
        terminated=chosen.terminated,
        truncated=chosen.truncated,
        group=torch.arange(len(flat)) // group_size,
        draw=torch.arange(len(flat)) // rows.shape[1],
        num_draws=len(rows),
        gamma=paths.gamma,
        paths=chosen,
        theta=theta,
        logp=logp[flat],
        logp_old=logp_old[flat],
    )


def draws(
    paths: Paths,
    theta: Tensor,
    *,
    group_size: int,
    num_groups: int = 1,
    theta_old: Tensor | None = None,
    listing: Listing = MULTISETS,
    limit: int = DRAWS_LIMIT,
) -> Draws:
    """Return every batch of `num_groups` groups of `group_size` trajectories, sampled by `theta_old`.

    `theta_old` is θ itself unless given. The trajectories of a group share a start state, itself drawn; a
    batch of independent trajectories is one of groups of 1. For an estimator that sees the order of the
    trajectories, pass TUPLES. ValueError if there are more than `limit` batches.
    """
    theta_old = theta if theta_old is None else theta_old
    rows, probability = groups(
        paths.probability(theta_old).detach(),
        paths.states[:, 0],
        num_groups=num_groups,
        group_size=group_size,
        limit=limit,
        listing=listing,
    )
    return Draws(paths, theta, theta_old, rows, group_size, probability, exact=True)


def sampled(
    paths: Paths,
    theta: Tensor,
    *,
    group_size: int,
    num_groups: int = 1,
    num_draws: int,
    generator: torch.Generator,
    theta_old: Tensor | None = None,
) -> Draws:
    """Return `num_draws` batches at random out of all that `draws` would list."""
    check_sizes(num_draws=num_draws, num_groups=num_groups, group_size=group_size)
    theta_old = theta if theta_old is None else theta_old
    probability, start = paths.probability(theta_old).detach(), paths.states[:, 0]
    count = num_draws * num_groups
    first = start[torch.multinomial(probability, count, replacement=True, generator=generator)]
    rows = torch.empty(count, group_size, dtype=torch.long)
    for s in first.unique():
        here = (first == s).nonzero()[:, 0]
        of_start = torch.where(start == s, probability, 0)
        chosen = torch.multinomial(of_start, len(here) * group_size, replacement=True, generator=generator)
        rows[here] = chosen.reshape(len(here), group_size)
    return _sample(paths, theta, theta_old, rows.reshape(num_draws, -1), group_size)


def simulated(
    mdp: TabularMDP,
    theta: Tensor,
    *,
    group_size: int,
    num_groups: int = 1,
    num_draws: int,
    max_steps: int,
    generator: torch.Generator,
    theta_old: Tensor | None = None,
) -> Draws:
    """Return `num_draws` batches of trajectories played in the world: for worlds with too many to list.

    ValueError if a trajectory has not ended after `max_steps`.
    """
    check_sizes(num_draws=num_draws, num_groups=num_groups, group_size=group_size)
    theta_old = theta if theta_old is None else theta_old
    policy = softmax_policy(mdp, theta_old.detach())
    count = num_draws * num_groups
    state = torch.multinomial(mdp.start, count, replacement=True, generator=generator)
    state = state.repeat_interleave(group_size)
    world = mdp.start[state]
    steps: list[Tensor] = []
    while not steps or _goes_on(mdp, state, len(steps)):
        if len(steps) == max_steps:
            raise ValueError(
                f"simulate the world for {max_steps} steps: found {int((~mdp.terminal[state]).sum())} "
                "trajectories that go on. Give the world a horizon or a time limit, or raise max_steps."
            )
        action = torch.multinomial(policy[state], 1, generator=generator)[:, 0]
        action = torch.where(mdp.own[state] & ~mdp.terminal[state], action, 0)
        following = torch.multinomial(mdp.transition[state, action], 1, generator=generator)[:, 0]
        world = world * mdp.transition[state, action, following]
        steps.append(torch.stack([state, action, following]))
        state = following
    rows = torch.arange(count * group_size).reshape(num_draws, -1)
    return _sample(_columns(mdp, world, *torch.stack(steps, -1)), theta, theta_old, rows, group_size)


def discounted_sum(rewards: Float[Tensor, "N T"], gamma: float) -> Float[Tensor, " N"]:
    """Return Σ_t γ^t r_t of each row."""
    return (rewards * gamma ** torch.arange(rewards.shape[1], dtype=torch.float64)).sum(-1)


def step_scores(paths: Paths, theta: Float[Tensor, "O A"]) -> Float[Tensor, "N T A"]:
    """Return ∇ log π(a_t | o_t) by the logits of o_t: `[N, T, A]`, 0 where masked."""
    chosen = torch.nn.functional.one_hot(paths.actions, theta.shape[1])
    scores = chosen - theta.detach().double().softmax(-1)[paths.observations]
    return torch.where(paths.mask[..., None], scores, 0)


def score_dots(paths: Paths, scores: Float[Tensor, "N T A"]) -> Float[Tensor, "N T T"]:
    """Return the products of the gradients by θ of any two steps of a trajectory, of their `step_scores`.

    Steps that show different observations move different logits: their product is 0.
    """
    same = paths.observations[:, :, None] == paths.observations[:, None, :]
    return torch.where(same, scores @ scores.transpose(1, 2), 0)


def _goes_on(mdp: TabularMDP, state: Tensor, num_steps: int) -> bool:
    return num_steps != mdp.max_steps and not bool(mdp.terminal[state].all())


def _ways(mdp: TabularMDP) -> Tensor:
    """Return (state, action, next state) of every step that can happen `[3, E]`, sorted by state.

    Where the policy does not act the only action is 0. An ended trajectory stays where it is.
    """
    possible = mdp.transition > 0
    possible[~mdp.own | mdp.terminal, 1:] = False
    return possible.nonzero().T


def _onward(sorted_states: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return (row of `state`, place among the sorted ones) of every way on from each row."""
    first = torch.searchsorted(sorted_states, state)
    number = torch.searchsorted(sorted_states, state, right=True) - first
    parent = torch.arange(len(state)).repeat_interleave(number)
    since = torch.arange(len(parent)) - (number.cumsum(0) - number)[parent]
    return parent, first[parent] + since


def _unrolled(steps: list[tuple[Tensor, ...]]) -> Tensor:
    """Return states, actions and next states `[3, N, T]` of steps that point to the row they go on from."""
    row = torch.arange(len(steps[-1][0]))
    columns: list[Tensor] = []
    for parent, *step in reversed(steps):
        columns.append(torch.stack([column[row] for column in step]))
        row = parent[row]
    return torch.stack(columns[::-1], -1)


def _columns(mdp: TabularMDP, world: Tensor, states: Tensor, actions: Tensor, following: Tensor) -> Paths:
    """Return the trajectories of all steps taken. What is open at the horizon ends, at the time limit is
    cut."""
    real = ~mdp.terminal[states]
    mask = real & mdp.own[states]
    terminated, truncated = real & mdp.terminal[following], torch.zeros_like(real)
    over = terminated if states.shape[1] == mdp.horizon else truncated
    over[:, -1] |= (real & ~terminated)[:, -1]
    visited = real.clone()
    visited[:, 0] = True
    return Paths(
        world=world,
        states=torch.where(visited, states, 0),
        observations=torch.where(mask, mdp.observation[states], 0),
        actions=torch.where(mask, actions, 0),
        rewards=mdp.reward[states, actions, following],
        mask=mask,
        terminated=terminated,
        truncated=truncated,
        final=following[:, -1],
        gamma=mdp.gamma,
    )


def _sample(paths: Paths, theta: Tensor, theta_old: Tensor, rows: Tensor, group_size: int) -> Draws:
    share = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    return Draws(paths, theta, theta_old, rows, group_size, share, exact=False)
