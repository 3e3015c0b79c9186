"""A finite world: tables in float64, checked once, so that every expectation is a finite sum.

Letters: `S` states, `A` actions, `O` observations. A policy sees observations, not states; where the two
differ the world is partially observed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SUM_TOLERANCE = 1e-9
"""How far a row of probabilities may sum from 1."""


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A Markov decision process as tables. `tabular` builds one from simpler arguments.

    A problem may end after some steps, or an episode of it may be cut. `horizon` is part of the problem: J
    ends there, so the step there is `terminated`, and what a state is worth depends on the step. `time_limit`
    is not: J goes on behind it, so the step there is `truncated`, and whoever learns from it looks at the
    state in which it was cut. `with_time` makes the step part of the state.

    ValueError on construction, naming the row: probabilities that are negative or do not sum to 1, γ outside
    [0, 1], γ = 1 where neither a horizon nor a terminal state is sure to end the trajectory, shapes that do
    not match.
    """

    transition: Float[Tensor, "S A S"]
    """P(s′ | s, a), stochastic along the last axis. A terminal state stays where it is."""
    reward: Float[Tensor, "S A S"]
    """r(s, a, s′). A terminal state pays 0."""
    start: Float[Tensor, " S"]
    """Probability of each state at t = 0."""
    gamma: float
    """Discount γ in [0, 1]."""
    terminal: Bool[Tensor, " S"]
    """Where a trajectory ends: nothing follows."""
    observation: Int[Tensor, " S"]
    """Which observation each state shows, 0 to O - 1. The identity: fully observed."""
    own: Bool[Tensor, " S"]
    """Where the policy acts. Elsewhere the world moves by itself: the action changes nothing, and the step is
    masked. J counts its reward and its time; estimators read neither. They estimate this J where the world
    pays on the policy's own steps and γ = 1."""
    horizon: int | None = None
    """The number of steps after which the problem ends, or None. J counts the steps before."""
    time_limit: int | None = None
    """The number of steps after which we stop looking, or None. J counts what would follow."""

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_numbers(self)
        _check_terminal_and_own(self)
        if self.gamma == 1 and self.horizon is None:
            _check_ends(self)

    @property
    def max_steps(self) -> int | None:
        """The number of steps of the longest trajectory that can be seen, or None: where it ends or is
        cut."""
        return min((n for n in (self.horizon, self.time_limit) if n is not None), default=None)

    @property
    def fully_observed(self) -> bool:
        """Whether every state in which the policy acts shows an observation of its own."""
        shown = self.observation[self.own & ~self.terminal]
        return len(shown.unique()) == len(shown)

    @property
    def num_states(self) -> int:
        """S."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.transition.shape[1]

    @property
    def num_observations(self) -> int:
        """O."""
        return int(self.observation.max()) + 1


def tabular(
    transition: Tensor,
    reward: Tensor,
    start: Tensor,
    *,
    gamma: float,
    terminal: Tensor | None = None,
    observation: Tensor | None = None,
    own: Tensor | None = None,
    horizon: int | None = None,
    time_limit: int | None = None,
) -> TabularMDP:
    """Return the MDP of P `[S, A, S′]`, r `[S, A, S′]` or `[S, A]` and a start distribution `[S]`.

    No state is terminal, every state shows itself and is the policy's own unless said otherwise. The rows of
    terminal states are not read: such a state stays where it is and pays 0.
    """
    if transition.dim() != 3:
        raise ValueError(f"transition {tuple(transition.shape)}: P needs the shape [S, A, S].")
    num_states = transition.shape[0]
    transition = transition.to(torch.float64).clone()
    if reward.dim() == 2:
        reward = reward[:, :, None].expand(*reward.shape, num_states)
    reward = reward.to(torch.float64).clone()
    nowhere = torch.zeros(num_states, dtype=torch.bool)
    terminal = nowhere if terminal is None else terminal.bool()
    if transition.shape == reward.shape and (num_states,) == terminal.shape == transition.shape[2:]:
        transition[terminal] = torch.eye(num_states, dtype=torch.float64)[terminal][:, None, :]
        reward[terminal] = 0
    return TabularMDP(
        transition=transition,
        reward=reward,
        start=start.to(torch.float64),
        gamma=gamma,
        terminal=terminal,
        observation=torch.arange(num_states) if observation is None else observation.long(),
        own=~nowhere if own is None else own.bool(),
        horizon=horizon,
        time_limit=time_limit,
    )


def with_time(mdp: TabularMDP) -> TabularMDP:
    """Return the same problem with the step as part of the state and of the observation, and no horizon.

    State s at step t is t · S + s and shows t · O + o(s), for t = 0 … H; those of step H are terminal. What
    was a recursion over the steps is a world like any other: its V, Q and optimum are those of the horizon,
    step after step. The world itself where it has no horizon.
    """
    if mdp.horizon is None:
        return mdp
    steps, size = torch.arange(mdp.horizon + 1).repeat_interleave(mdp.num_states), mdp.num_states
    shape = (len(steps), mdp.num_actions, len(steps))
    transition, reward = torch.zeros(2, *shape, dtype=torch.float64)
    for t in range(mdp.horizon):
        here, after = slice(t * size, (t + 1) * size), slice((t + 1) * size, (t + 2) * size)
        transition[here, :, after], reward[here, :, after] = mdp.transition, mdp.reward
    return tabular(
        transition,
        reward,
        torch.nn.functional.pad(mdp.start, (0, len(steps) - size)),
        gamma=mdp.gamma,
        terminal=mdp.terminal.repeat(mdp.horizon + 1) | (steps == mdp.horizon),
        observation=steps * mdp.num_observations + mdp.observation.repeat(mdp.horizon + 1),
        own=mdp.own.repeat(mdp.horizon + 1),
        time_limit=mdp.time_limit,
    )


def softmax_policy(mdp: TabularMDP, theta: Tensor) -> Tensor:
    """Return π(a | s) `[S, A]`, float64, of the logits θ `[O, A]`: a state plays those of its observation."""
    expected = (mdp.num_observations, mdp.num_actions)
    if theta.shape != expected:
        raise ValueError(
            f"theta {tuple(theta.shape)} with {expected[0]} observations and {expected[1]} actions: "
            f"pass logits of shape {expected}."
        )
    return theta.double().softmax(-1)[mdp.observation]


def check_distribution(name: str, rows: Tensor) -> None:
    """ValueError that names the first row along the last axis which is no probability distribution."""
    for wrong, what in (
        (~(rows >= 0).all(-1), "has a negative or missing entry"),
        ((rows.sum(-1) - 1).abs() > SUM_TOLERANCE, "does not sum to 1"),
    ):
        if bool(wrong.any()):
            place = wrong.nonzero()[0].tolist()
            row = rows[tuple(place)]
            label = f"{name}[{', '.join(map(str, place))}]" if place else name
            raise ValueError(
                f"{label} {what}: found the sum {float(row.sum()):.9g} and the least entry "
                f"{float(row.min()):.9g}. Pass probabilities, in float64."
            )


def leads_to(goal: Bool[Tensor, " S"], step: Bool[Tensor, "S S"]) -> Bool[Tensor, " S"]:
    """Return the states from which `goal` can be reached; `step[s, s′]`: one step may lead from s to s′."""
    found = goal
    while bool(((more := found | (step & found).any(1)) != found).any()):
        found = more
    return found


def reachable(mdp: TabularMDP) -> Bool[Tensor, " S"]:
    """Return the states that a trajectory from the start may come to."""
    return leads_to(mdp.start > 0, (mdp.transition > 0).any(1).T)


def _check_shapes(mdp: TabularMDP) -> None:
    P = mdp.transition
    if P.dim() != 3 or P.shape[0] != P.shape[2] or P.numel() == 0:
        raise ValueError(f"transition {tuple(P.shape)}: P needs the shape [S, A, S]. Found none such.")
    num_states = P.shape[0]
    for name, shape in (
        ("reward", tuple(P.shape)),
        ("start", (num_states,)),
        ("terminal", (num_states,)),
        ("observation", (num_states,)),
        ("own", (num_states,)),
    ):
        found = tuple(getattr(mdp, name).shape)
        if found != shape:
            raise ValueError(f"{name} {found} with transition {tuple(P.shape)}: pass {name} as {shape}.")


def _check_numbers(mdp: TabularMDP) -> None:
    for name, table in (("transition", mdp.transition), ("reward", mdp.reward), ("start", mdp.start)):
        if table.dtype is not torch.float64:
            raise ValueError(f"{name} is {table.dtype}: tables are float64. `tabular` converts them.")
    if not 0 <= mdp.gamma <= 1:
        raise ValueError(f"gamma={mdp.gamma:g}: a discount lies in [0, 1]. Choose one there.")
    for name, steps in (("horizon", mdp.horizon), ("time_limit", mdp.time_limit)):
        if steps is not None and (steps < 1 or steps != int(steps)):
            raise ValueError(
                f"{name}={steps}: a trajectory has a whole number of steps, at least 1. Use one, or None."
            )
    if not bool(mdp.reward.isfinite().all()):
        s, a, s2 = (~mdp.reward.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"reward[{s}, {a}, {s2}]={float(mdp.reward[s, a, s2])}: rewards must be finite.")
    if int(mdp.observation.min()) < 0:
        raise ValueError("observation with a negative number: observations count from 0.")
    check_distribution("start", mdp.start)
    check_distribution("transition", mdp.transition)


def _check_terminal_and_own(mdp: TabularMDP) -> None:
    eye = torch.eye(mdp.num_states, dtype=torch.float64)
    for s in mdp.terminal.nonzero()[:, 0].tolist():
        if not bool((mdp.transition[s] == eye[s]).all()) or bool((mdp.reward[s] != 0).any()):
            raise ValueError(
                f"state {s} is terminal: it must stay where it is and pay 0. `tabular` writes such rows."
            )
    for s in (~mdp.own).nonzero()[:, 0].tolist():
        for table, name in ((mdp.transition, "transition"), (mdp.reward, "reward")):
            if not bool((table[s] == table[s, 0]).all()):
                raise ValueError(
                    f"state {s} is not the policy's own, but {name}[{s}] differs between actions: there the "
                    "world moves by itself. Give all actions the same row."
                )


def _check_ends(mdp: TabularMDP) -> None:
    """With γ = 1, J is finite if a terminal state can be reached from every state that can be visited.

    A step that the uniform policy takes more rarely than once in 10^16 does not count: no sum sees it.
    """
    step = mdp.transition.mean(1) > torch.finfo(mdp.transition.dtype).eps
    lost = (reachable(mdp) & ~leads_to(mdp.terminal, step)).nonzero()[:, 0].tolist()
    if lost:
        raise ValueError(
            f"gamma=1 without an absorbing end: from state {lost[0]} no terminal state can be reached, so "
            "the expected return may be infinite. Use gamma < 1, a horizon, or a terminal state."
        )
