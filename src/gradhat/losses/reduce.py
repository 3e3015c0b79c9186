"""From steps to one number: the weight `[B, T]` of every step. The loss is -(weight · objective).sum().

`mask` is bool or 0/1 `[B, T]`, 1 where the step is the policy's own action. A masked step has weight
exactly 0. The answer has the dtype of `mask` if that is floating, else torch's default: pass
`mask.to(torch.float64)` for float64 weights.

The counts belong to the whole optimiser step, over every micro-batch and rank. They are arguments and
never read off the mask at hand, so that splitting a batch changes nothing: the sums of the parts add up
to the sum of the whole, in any order. A sequence is never split between parts. Each function raises
ValueError for a count that is not positive and for a mask that is not `[B, T]` of bool or 0/1.

Which to take depends on what shall count the same: each trajectory's whole score (`per_trajectory`,
`constant`), each token (`per_token`), each answer (`per_sequence`), each prompt (`per_group`).
"""

from jaxtyping import Float, Real, Shaped
from torch import Tensor

from gradhat.shapes import zero_one


def per_trajectory(mask: Shaped[Tensor, "B T"], *, num_trajectories: int) -> Float[Tensor, "B T"]:
    """Return 1 / |D| for every step: ĝ as the formula has it, unbiased for |D| fixed in advance.

    Source: Williams 1992. Long trajectories weigh more than short ones, as they must: the score of a
    trajectory is a sum over its steps. Assumes |D| fixed in advance. Failure case: a batch that is collected
    until it holds N steps has a random |D|, and the quotient is biased.
    """
    _positive(num_trajectories=num_trajectories)
    return _steps(mask) / num_trajectories


def per_token(mask: Shaped[Tensor, "B T"], *, num_tokens: int) -> Float[Tensor, "B T"]:
    """Return 1 / (number of own steps in the whole optimiser step) for every step.

    Source: Yu et al. 2025 (DAPO), eq. 8, as trainers read it: over the whole batch. The direction of one
    update is that of `per_trajectory`; its length varies with the lengths sampled, so the expectation is that
    of a ratio and biased. Assumes that `num_tokens` counts every micro-batch and rank. Failure case: counted
    per micro-batch, tokens of a part with short answers weigh more than those of another.
    """
    _positive(num_tokens=num_tokens)
    return _steps(mask) / num_tokens


def per_sequence(mask: Shaped[Tensor, "B T"], *, num_sequences: int) -> Float[Tensor, "B T"]:
    """Return 1 / (number of sequences · length of the step's own sequence): the mean of means.

    Source: Shao et al. 2024 (DeepSeekMath), eq. 3. Assumes that an answer counts the same at any length.
    Biased: short answers weigh more per step. Failure case: long wrong answers are punished less than short
    ones, and grow (Liu et al. 2025, Dr. GRPO). A sequence without own steps has weight 0 and still counts.
    """
    _positive(num_sequences=num_sequences)
    steps = _steps(mask)
    return steps / (steps.sum(-1, keepdim=True).clamp(min=1) * num_sequences)


def constant(mask: Shaped[Tensor, "B T"], *, num_sequences: int, length: int) -> Float[Tensor, "B T"]:
    """Return 1 / (number of sequences · length) for every step.

    Source: Liu et al. 2025 (Dr. GRPO), section 3.2. `length` is fixed in advance, such as the limit of new
    tokens, so this is `per_trajectory` divided by a constant: same direction, no length bias. Assumes the
    same `length` in every update. Failure case: the longest answer of the batch in its place is random.
    """
    _positive(num_sequences=num_sequences, length=length)
    return _steps(mask) / (num_sequences * length)


def per_group(
    mask: Shaped[Tensor, "B T"], group_tokens: Real[Tensor, " B"], *, num_groups: int
) -> Float[Tensor, "B T"]:
    """Return 1 / (number of groups · own steps of the step's whole group): every prompt counts the same.

    `group_tokens` `[B]` is the number of own steps in the trajectory's whole group, over the whole optimiser
    step: members of the group that lie in other micro-batches or ranks are in it.

    Source: Khatri et al. 2025 (ScaleRL), the prompt average, which they compare with `per_sequence` and
    `per_token`; it is also Yu et al. 2025 (DAPO), eq. 8, read literally: its sum of lengths is over the
    answers to one question. Assumes that prompts are drawn alike, so that each stands for as much of J.
    Failure case: biased as `per_token` is, prompt by prompt: the steps of prompts that are answered at length
    weigh less. A group without own steps has weight 0 and still counts. ValueError if a trajectory has more
    own steps than its group: the count is then of something else, such as the group's size.
    """
    _positive(num_groups=num_groups)
    steps = _steps(mask)
    own = steps.bool().sum(-1)
    if group_tokens.shape != own.shape:
        raise ValueError(
            f"group_tokens {tuple(group_tokens.shape)} with mask {tuple(mask.shape)}: one count per "
            "trajectory is needed. Pass group_tokens as [B]."
        )
    if bool((own > group_tokens).any()):
        row = int((own > group_tokens).nonzero()[0, 0])
        raise ValueError(
            f"group_tokens[{row}]={group_tokens[row].item():g} with {int(own[row])} own steps in that row: "
            "a group has at least the steps of its member. Count the own steps of the whole group."
        )
    return steps / (group_tokens.to(steps.dtype).clamp(min=1)[:, None] * num_groups)


def _steps(mask: Tensor) -> Tensor:
    if mask.dim() != 2:
        raise ValueError(
            f"mask {tuple(mask.shape)}: a weight belongs to a step of a trajectory. Pass mask as [B, T]."
        )
    return zero_one(mask)


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count <= 0:
            raise ValueError(
                f"{name}={count}: the count of a whole optimiser step must be positive. "
                "Skip the step when nothing was sampled."
            )
