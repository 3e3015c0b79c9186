"""Chunks of experience out of numbered worlds, many copies at once."""

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from gradhat.policies.policy import Actor
from gradhat.trajectories import Trajectories


class Lanes:
    """Copies of a world with next-step autoreset, which go on where the last chunk stopped."""

    def __init__(self, env: VectorEnv, *, seed: int = 0) -> None:
        self.env = env
        self.generator = torch.Generator().manual_seed(seed)
        self.seen, infos = env.reset(seed=seed)
        self.own = infos.get("own", np.ones(env.num_envs, dtype=bool))
        self.returns = np.zeros(env.num_envs)
        self.finished: list[float] = []

    def collect(self, actor: Actor, num_steps: int) -> Trajectories:
        """The dummy step is masked, and where the world moves by itself. The successor of an own step is what
        the policy sees when it acts again; at the end of a chunk that is not known yet, and it is masked."""
        shape = (num_steps, self.env.num_envs)
        seen, following, actions = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        rewards, logp = np.zeros(shape), torch.zeros(shape)
        mask, terminated, truncated = (np.zeros(shape, dtype=bool) for _ in range(3))
        for t in range(num_steps):
            seen[t], mask[t] = self.seen, self.own
            drawn, logp[t] = actor.act(torch.from_numpy(seen[t]), self.generator)
            actions[t] = drawn.numpy()
            following[t], rewards[t], terminated[t], truncated[t], infos = self.env.step(actions[t])
            ended = terminated[t] | truncated[t]
            self.seen, self.own = following[t], infos.get("own", ~ended)
            self._count(rewards[t], ended)
        moves = mask & ~(terminated | truncated) & ~np.concatenate([mask[1:], self.own[None]])
        following[:-1] = np.where(moves[:-1], following[1:], following[:-1])
        mask[-2:] &= ~moves[-2:]
        nothing = torch.zeros(shape[1], dtype=torch.long)
        return Trajectories(
            observations=lanes(seen),
            actions=lanes(actions),
            mask=lanes(mask),
            logp=logp.T,
            rewards=lanes(rewards),
            terminated=lanes(terminated & mask),
            truncated=lanes(truncated & mask),
            group=nothing,
            version=nothing,
            next_observations=lanes(following),
        )

    def _count(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        self.returns += rewards
        self.finished += self.returns[ended].tolist()
        self.returns[ended] = 0


def lanes(columns: NDArray) -> Tensor:
    return torch.from_numpy(columns.T)
