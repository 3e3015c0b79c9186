"""A language of three sentences over two words, for two prompts: every expectation is a finite sum.

Word 0 ends the sentence at once, word 1 goes on to a second and last word. So a state is (prompt, step), and
a policy is a table of logits `[4, 2]`. Everything is float64.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor, nn

from gradhat.algorithms.ascend import Optimizer, Step
from gradhat.policies.policy import Evaluation, Policy
from gradhat.trajectories import Trajectories

F64 = torch.float64
SENTENCES = ((0,), (1, 0), (1, 1))
REWARDS = (((0.3,), (0.9, -0.4), (0.9, 2.0)), ((1.1,), (-0.5, 0.7), (-0.5, -0.6)))
"""Of each step, by prompt and sentence. The first reward knows only the first word."""
LOGITS = ((0.4, -0.3), (1.1, 0.2), (-0.6, 0.5), (0.0, -0.9))
REFERENCE = ((0.1, 0.3), (0.2, -0.8), (0.7, -0.2), (-0.4, 0.6))


class Table(nn.Module):
    def __init__(self, logits: tuple[tuple[float, ...], ...]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=F64))


@dataclass
class Softmax:
    """A tabular policy. `evaluated` collects the number of rows of every micro-batch."""

    module: Table = field(default_factory=lambda: Table(LOGITS))
    part: int = 1000
    evaluated: list[int] = field(default_factory=list)

    def split(self, trajectories: Trajectories) -> list[list[int]]:
        rows = list(range(len(trajectories)))
        return [rows[i : i + self.part] for i in range(0, len(rows), self.part)]

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        self.evaluated.append(len(trajectories))
        prompt = torch.tensor([o[0] for o in trajectories.observations])
        state = 2 * prompt[:, None] + torch.arange(trajectories.mask.shape[1])
        logp = self.module.logits.log_softmax(-1)[state]
        mask = trajectories.mask
        entropy = torch.where(mask, -(logp.exp() * logp).sum(-1), 0)
        return Evaluation(
            torch.where(mask, logp.gather(-1, trajectories.actions[..., None])[..., 0], 0), entropy, None
        )


class Recorder:
    """An optimizer that only records: the gradient of the objective, not of the loss."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.gradient = {name: torch.zeros_like(w) for name, w in module.named_parameters()}
        self.events: list[str] = []

    def accumulate(self) -> None:
        self.events.append("accumulate")
        for name, weight in self.module.named_parameters():
            if weight.grad is not None:
                self.gradient[name] -= weight.grad
                weight.grad = None

    def step(self) -> Step:
        self.events.append("step")
        return Step(0.5, False)


def probability(prompt: int, sentence: int, logits: Tensor) -> Tensor:
    table = logits.softmax(-1)
    return math.prod(
        (table[2 * prompt + step, word] for step, word in enumerate(SENTENCES[sentence])),
        start=torch.ones((), dtype=F64),
    )


def batch(prompts: tuple[int, ...], sentences: tuple[int, ...], logits: Tensor) -> Trajectories:
    """One trajectory per prompt and sentence; trajectories of one prompt are a group."""
    lengths = torch.tensor([len(SENTENCES[s]) for s in sentences])
    mask = torch.arange(2) < lengths[:, None]
    actions = torch.tensor([(*SENTENCES[s], 0)[:2] for s in sentences])
    rewards = [(*REWARDS[p][s], 0.0)[:2] for p, s in zip(prompts, sentences, strict=True)]
    state = 2 * torch.tensor(prompts)[:, None] + torch.arange(2)
    logp = logits.log_softmax(-1)[state].gather(-1, actions[..., None])[..., 0]
    return Trajectories(
        observations=[(p,) for p in prompts],
        actions=actions,
        mask=mask,
        logp=torch.where(mask, logp.detach(), 0),
        rewards=torch.tensor(rewards, dtype=F64),
        terminated=torch.stack([lengths == 1, lengths == 2], dim=1),
        truncated=torch.zeros_like(mask),
        group=torch.tensor(prompts),
        version=torch.zeros(len(prompts), dtype=torch.long),
    )


def batches(prompts: tuple[int, ...], logits: Tensor) -> Iterator[tuple[float, Trajectories]]:
    """Every batch that could be sampled from `prompts`, with its probability."""
    for sentences in product(range(len(SENTENCES)), repeat=len(prompts)):
        chance = [float(probability(p, s, logits)) for p, s in zip(prompts, sentences, strict=True)]
        yield math.prod(chance), batch(prompts, sentences, logits)


def expected_gradient(
    prompts: tuple[int, ...], update: Callable[[Policy, Optimizer, Trajectories], object], part: int = 1000
) -> Tensor:
    """E of the gradient `[4, 2]` that `update` accumulates, over every batch sampled from `prompts`."""
    policy = Softmax(part=part)
    logits = policy.module.logits.detach()
    total = torch.zeros_like(logits)
    for chance, trajectories in batches(prompts, logits):
        recorder = Recorder(policy.module)
        update(policy, recorder, trajectories)
        total += chance * recorder.gradient["logits"]
    return total


def objective(logits: Tensor, num_prompts: int = 2) -> Tensor:
    """J: the expected return, a finite sum."""
    values = [
        probability(p, s, logits) * sum(REWARDS[p][s])
        for p in range(num_prompts)
        for s in range(len(SENTENCES))
    ]
    return torch.stack(values).sum() / num_prompts


def divergence(logits: Tensor, reference: Tensor, num_prompts: int = 2) -> Tensor:
    """KL(π ‖ π_ref) over sentences, mean over prompts."""
    terms: list[Tensor] = []
    for p, s in product(range(num_prompts), range(len(SENTENCES))):
        chance = probability(p, s, logits)
        terms.append(chance * (chance / probability(p, s, reference)).log())
    return torch.stack(terms).sum() / num_prompts


def exact_gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    logits = torch.tensor(LOGITS, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(of(logits), logits)
    return gradient
