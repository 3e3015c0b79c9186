"""A language model as a policy: states are token prefixes, actions are tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradhat.policies.language.logprob import chunked_logp
from gradhat.policies.language.transformer import Transformer
from gradhat.policies.language.tree import Tree, plant
from gradhat.policies.policy import Evaluation
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class LanguagePolicy:
    """π_θ(token | prefix) = softmax(logits / temperature).

    `token_budget` bounds the tokens of one micro-batch, and with them its memory: a token costs the same in
    a row of any length (`tree.py`).
    """

    module: Transformer
    temperature: float = 1.0
    token_budget: int = 4096

    def split(self, trajectories: Trajectories) -> list[list[int]]:
        """Cut into micro-batches of at most `token_budget` tokens, a prompt counted once in each.

        Returns the rows of each. A group that fits the budget is not cut. A single trajectory over the budget
        is a micro-batch of its own.
        """
        lengths = _lengths(trajectories)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, prompt in enumerate(trajectories.numbers()):
            groups.setdefault(tuple(prompt), []).append(i)
        parts: list[list[int]] = []
        left = 0
        for prompt, rows in groups.items():
            if len(prompt) + sum(lengths[i] for i in rows) > left:
                parts.append([])
                left = self.token_budget
            left -= len(prompt)
            for i in rows:
                if parts[-1] and lengths[i] > left:
                    parts.append([])
                    left = self.token_budget - len(prompt)
                parts[-1].append(i)
                left -= lengths[i]
        return parts

    def examples(self, trajectories: Trajectories) -> Trajectories:
        """Return the trajectories themselves: a token cannot be evaluated without those before it."""
        return trajectories

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        """One forward with each prompt once. Only the states in which the policy acted meet the head.

        Masked steps get 0. Differentiable once.
        """
        prompts: dict[tuple[int, ...], int] = {}
        owner = [prompts.setdefault(tuple(o), len(prompts)) for o in trajectories.numbers()]
        lengths = _lengths(trajectories)
        actions = trajectories.actions.tolist()
        # The last action has no successor to predict, so it is not an input.
        tree = plant(list(prompts), [actions[i][: max(0, n - 1)] for i, n in enumerate(lengths)], owner)
        hidden = self.module(tree.tokens, tree.positions, tree.attend())
        acted = trajectories.mask
        logp, entropy = chunked_logp(
            hidden.index_select(0, _states_before(tree, acted.shape[1])[acted]),
            self.module.head_weight,
            trajectories.actions[acted],
            temperature=self.temperature,
        )
        nothing = torch.zeros(acted.shape, dtype=logp.dtype)
        return Evaluation(nothing.masked_scatter(acted, logp), nothing.masked_scatter(acted, entropy), None)


def _lengths(trajectories: Trajectories) -> list[int]:
    """Tokens after the prompt in each trajectory, up to the last one of the policy's own."""
    steps = torch.arange(1, trajectories.mask.shape[1] + 1)
    return [int(n) for n in (trajectories.mask * steps).amax(-1)]


def _states_before(tree: Tree, length: int) -> Tensor:
    """Stream index of the token after which action t is taken, int64 `[C, T]`; meaningless behind the last
    one."""
    place = torch.arange(-1, length - 1) + tree.branch_starts()[:, None]
    place[:, 0] = tree.before_branches()
    return place.clamp_(max=len(tree.tokens) - 1)
