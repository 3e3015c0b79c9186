"""Small networks on worlds where every batch can be listed, and an optimiser with a state."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from toy import Recorder

from gradhat.algorithms.ascend import Optimizer, Step
from gradhat.exact.enumerate import Paths, draws, paths
from gradhat.exact.gradient import by_theorem
from gradhat.exact.mdp import TabularMDP, softmax_policy, tabular
from gradhat.exact.solve import evaluate, evaluate_finite
from gradhat.policies.mlp import MLP, ActorCritic, MLPPolicy
from gradhat.trajectories import Trajectories

F64 = torch.float64
Update = Callable[[MLPPolicy, Optimizer, Trajectories], object]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_policy(
    num_inputs: int,
    num_outputs: int,
    *,
    seed: int = 0,
    hidden: tuple[int, ...] = (3,),
    dtype: torch.dtype = F64,
    continuous: bool = False,
    critic: bool = True,
) -> MLPPolicy:
    """An actor and a critic whose every parameter is standard normal."""
    draw = generator(seed)
    module = ActorCritic(
        num_inputs, num_outputs, hidden=hidden, continuous=continuous, critic=critic, generator=draw
    ).to(dtype)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw, dtype=F64).to(dtype)
    return MLPPolicy(module)


def layered(*, seed: int = 0, depth: int = 2, width: int = 2, num_actions: int = 2) -> TabularMDP:
    """`width` states in each of `depth` layers, each step leads to the next: all trajectories are as long.

    They start in state 0.
    """
    draw = generator(seed)
    num_states = depth * width + 1
    transition = torch.zeros(num_states, num_actions, num_states, dtype=F64)
    for layer in range(depth):
        first = (layer + 1) * width
        last = first + 1 if layer == depth - 1 else first + width
        weights = torch.rand(width, num_actions, last - first, generator=draw, dtype=F64) + 0.1
        transition[layer * width : first, :, first:last] = weights / weights.sum(-1, keepdim=True)
    reward = torch.randn(num_states, num_actions, num_states, generator=draw, dtype=F64)
    state = torch.arange(num_states)
    return tabular(transition, reward, state == 0, gamma=1.0, terminal=state == num_states - 1)


def logits(mdp: TabularMDP, policy: MLPPolicy) -> Tensor:
    """θ `[O, A]`: what the network answers to each observation as a one-hot vector."""
    return policy.module.actor(torch.eye(mdp.num_observations, dtype=F64))


def values(mdp: TabularMDP, policy: MLPPolicy) -> Tensor:
    """The true V `[S]` of the policy, in a world without a horizon."""
    return evaluate(mdp, softmax_policy(mdp, logits(mdp, policy).detach())).v


def knowing(policy: MLPPolicy, values: Tensor) -> MLPPolicy:
    """The same actor with a linear critic that says `values` of one-hot observations."""
    module = policy.module
    module.critic = MLP((len(values), 1), last_gain=1.0, generator=generator()).double()
    module.critic.weights[0].data = values[None].clone()
    return policy


def successors(some: Paths) -> Tensor:
    """The state after each step `[N, T]`: the next one, or that in which the trajectory ended or was cut."""
    last = some.terminated | some.truncated
    return torch.where(last, some.final[:, None], some.states.roll(-1, 1))


def lived(mdp: TabularMDP, some: Paths, theta: Tensor) -> Trajectories:
    """Trajectories as a collector would hand them over: one-hot observations, true successors."""
    return Trajectories(
        observations=one_hot(some.observations, mdp.num_observations).double(),
        actions=some.actions,
        mask=some.mask,
        logp=some.logp(theta).detach(),
        rewards=some.rewards,
        terminated=some.terminated,
        truncated=some.truncated,
        group=torch.arange(len(some)),
        version=torch.zeros(len(some), dtype=torch.long),
        next_observations=one_hot(mdp.observation[successors(some)], mdp.num_observations).double(),
    )


def actor_part(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for name, g in gradient.items() if name.startswith("actor")])


def expected_gradient(mdp: TabularMDP, policy: MLPPolicy, update: Update, size: int) -> Tensor:
    """E of what `update` hands its optimiser for the actor, over every batch of `size` trajectories."""
    theta = logits(mdp, policy).detach()
    every = draws(paths(mdp), theta, group_size=1, num_groups=size)
    total = torch.zeros(())
    for rows, chance in zip(every.rows, every.probability, strict=True):
        recorder = Recorder(policy.module)
        update(policy, recorder, lived(mdp, every.paths.select(rows), theta))
        total = total + chance * actor_part(recorder.gradient)
    return total


def exact_gradient(mdp: TabularMDP, policy: MLPPolicy) -> Tensor:
    """∇J by the parameters of the actor: the policy-gradient theorem, then the chain rule."""
    return by_parameters(mdp, policy, by_theorem(mdp, logits(mdp, policy)))


def seen_gradient(mdp: TabularMDP, policy: MLPPolicy) -> Tensor:
    """What is seen of ∇J before the time limit: Σ_t Σ_s Pr(s_t = s) Σ_a ∇π(a | s) A(s, a), where A is that of
    the problem that goes on. Without γ^t, as the pages have it."""
    assert mdp.time_limit is not None
    pi = softmax_policy(mdp, logits(mdp, policy).detach())
    visits = evaluate_finite(replace(mdp, gamma=1.0, horizon=mdp.time_limit), pi).occupancy.sum(0)
    by_state = visits[:, None] * pi * evaluate(mdp, pi).adv
    by_theta = by_state.new_zeros(mdp.num_observations, mdp.num_actions)
    return by_parameters(mdp, policy, by_theta.index_add(0, mdp.observation, by_state))


def by_parameters(mdp: TabularMDP, policy: MLPPolicy, by_theta: Tensor) -> Tensor:
    """A gradient by the logits as one by the parameters of the actor."""
    actor = list(policy.module.actor.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(logits(mdp, policy), actor, by_theta)])


def random_batch(
    policy: MLPPolicy,
    *,
    seed: int = 0,
    rows: int = 4,
    steps: int = 6,
    num_inputs: int = 3,
    dtype: torch.dtype = F64,
) -> Trajectories:
    """Steps of a world made of noise: ends of both kinds, a dummy step behind some, actions by the policy."""
    draw = generator(seed)
    seen = torch.randn(rows, steps + 1, num_inputs, generator=draw, dtype=F64).to(dtype)
    actions, logp = policy.act(seen[:, :-1].reshape(-1, num_inputs), draw)
    kind = torch.rand(rows, steps, generator=draw)
    mask = torch.rand(rows, steps, generator=draw) > 0.1
    return Trajectories(
        observations=seen[:, :-1],
        actions=actions.reshape(rows, steps, *actions.shape[1:]),
        mask=mask,
        logp=torch.where(mask, logp.reshape(rows, steps), 0),
        rewards=torch.randn(rows, steps, generator=draw, dtype=F64).to(dtype),
        terminated=(kind < 0.15) & mask,
        truncated=(kind > 0.85) & mask,
        group=torch.arange(rows),
        version=torch.zeros(rows, dtype=torch.long),
        next_observations=torch.randn(rows, steps, num_inputs, generator=draw, dtype=F64).to(dtype),
    )


class Adam:
    """Torch's, behind the protocol."""

    def __init__(self, module: nn.Module, lr: float = 0.01) -> None:
        self.torch = torch.optim.Adam(module.parameters(), lr=lr)

    def accumulate(self) -> None:
        pass

    def step(self) -> Step:
        self.torch.step()
        self.torch.zero_grad()
        return Step(0.0, False)


class Sgd(Adam):
    """Plain descent."""

    def __init__(self, module: nn.Module, lr: float) -> None:
        self.torch = torch.optim.SGD(module.parameters(), lr=lr)


@dataclass(frozen=True)
class Remembers(MLPPolicy):
    """Trains as a policy with memory does: rows are whole trajectories, micro-batches lists of them."""

    def split(self, trajectories: Trajectories) -> list[list[int]]:  # pyright: ignore
        rows = list(range(len(trajectories)))
        return [rows[i : i + 2] for i in range(0, len(rows), 2)]

    def examples(self, trajectories: Trajectories) -> Trajectories:
        return trajectories


def without_credit(trajectories: Trajectories) -> Trajectories:
    return replace(trajectories, adv=None, targets=None)
