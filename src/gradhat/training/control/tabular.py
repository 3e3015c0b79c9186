"""Agents with a table: Monte Carlo, SARSA, expected SARSA, Q-learning, and how far each is from the truth."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradhat.algorithms import tabular_control, tabular_errors
from gradhat.algorithms.tabular_control import CONTROL, Settings
from gradhat.algorithms.tabular_errors import Truth
from gradhat.envs.gym import World
from gradhat.errors import ConfigError
from gradhat.exact.mdp import TabularMDP
from gradhat.policies.action_values import EpsilonGreedyTable
from gradhat.policies.policy import Actor
from gradhat.rollouts.vector import Collector, Episode
from gradhat.training.control.agent import Choice, Means, acted, drawing, joined, num_bytes, part
from gradhat.training.seed import derive
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class Numbered:
    """An actor that reads the number of a state, in a world that shows it as a one-hot vector."""

    table: EpsilonGreedyTable

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of `observations` `[N, O]`."""
        return self.table.act(observations.argmax(-1), generator)


class TabularAgent:
    """Live a few steps, learn from them, and measure the table against V* and Q*."""

    def __init__(
        self, world: World, mdp: TabularMDP, *, rule: str, settings: Settings, num_steps: int, seed: int
    ) -> None:
        self.rule, self.settings, self.num_steps = CONTROL[rule], settings, num_steps
        self.table = tabular_control.init(mdp.num_observations, mdp.num_actions)
        try:
            self.truth: Truth = tabular_errors.truth(mdp)
        except ValueError as error:
            raise ConfigError(f"{rule} in {world.name}: {error}") from error
        best = tabular_errors.best_return(self.truth)
        self.optimal = {} if math.isnan(best) else {"optimal_return": best}
        """Undiscounted, of one episode."""
        self.generator = torch.Generator().manual_seed(derive(seed, "policy"))
        self.collector = Collector(world, seed=derive(seed, "world"))

    @property
    def num_frames(self) -> int:
        return self.collector.num_frames

    def advance(self, num_frames: int) -> dict[str, float]:
        means = Means()
        while self.num_frames < num_frames:
            actor: Actor = Numbered(tabular_control.actor(self.table, self.settings))
            lived = self.collector.collect(actor, self.num_steps, self.generator, version=0)
            if not acted(lived, means):
                continue
            means.add(tabular_control.update(self.table, _numbers(lived), self.rule, self.settings))
        return means.take() | tabular_errors.errors(self.truth, self.table.q) | self.optimal

    def sampled(self, generator: torch.Generator) -> Choice:
        return drawing(Numbered(tabular_control.actor(self.table, self.settings)), generator)

    def greedy(self) -> Choice:
        return lambda seen: self.table.q[seen.argmax(-1)].argmax(-1)

    def holds(self) -> str:
        return ""

    def drain(self) -> list[Episode]:
        return self.collector.drain()

    def state(self) -> dict[str, Tensor]:
        waiting = self.table.pending
        return joined(
            collector=self.collector.state(), pending={} if waiting is None else waiting._asdict()
        ) | {
            "q": self.table.q.clone(),
            "visits": self.table.visits.clone(),
            "num_frames": torch.tensor(self.table.num_frames),
            "generator": self.generator.get_state(),
        }

    def saved_bytes(self) -> int:
        return num_bytes(self.state().values())

    def restore(self, state: dict[str, Tensor]) -> None:
        waiting = part(state, "pending")
        self.table.q = _like(self.table.q, state, "q")
        self.table.visits = _like(self.table.visits, state, "visits")
        self.table.num_frames = int(state["num_frames"])
        self.table.pending = tabular_control.Steps(**waiting) if waiting else None
        self.generator.set_state(state["generator"])
        self.collector.restore(part(state, "collector"))

    def restore_policy(self, state: dict[str, Tensor]) -> None:
        self.table.q = _like(self.table.q, state, "q")

    def close(self) -> None:
        self.collector.world.close()


def _like(mine: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Return a copy of a table from `state`. ValueError where it is of another shape or type than `mine`."""
    found = state[name]
    if found.shape != mine.shape or found.dtype != mine.dtype:
        raise ValueError(
            f"{name} is {list(found.shape)} of {found.dtype}, wanted {list(mine.shape)} of {mine.dtype}"
        )
    return found.clone()


def _numbers(lived: Trajectories) -> Trajectories:
    """Return the same experience with the numbers of its states, int64 `[N, T]`."""
    seen, following = lived.observations, lived.next_observations
    assert isinstance(seen, Tensor) and following is not None
    return replace(lived, observations=seen.argmax(-1), next_observations=following.argmax(-1))
