"""From start states to trajectories in the text world: open episodes, sample, let the environment answer.

An episode is one step of a Gymnasium environment: messages are the observation, a completion is the action.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import gymnasium
import torch
from torch import Tensor

from gradhat.envs.text.env import verdicts
from gradhat.errors import TaskError
from gradhat.policies.language.chat import Chat, Message
from gradhat.rollouts.engine import Completion, Limits, Sampler
from gradhat.trajectories import Record, Trajectories
from gradhat.verdicts import Failures

TextEnv = gymnasium.Env[list[Message], str]


class Start(NamedTuple):
    """A start state: which environment, and the seed of its episode. The same seed gives the same start."""

    make: Callable[[], TextEnv]
    seed: int


class Experience(NamedTuple):
    """Everything that was sampled, and which rows of it (int64 `[N]`) are what."""

    sampled: Trajectories
    chosen: Tensor
    """To learn from. Which groups these are depends on their rewards."""
    first: Tensor
    """Of the starts that were drawn before any reward was known: what they say of the policy is unbiased."""


MOST_TOO_LONG = 100
"""Starts in a row whose prompt may be too long."""


class Fitting:
    """Those of `starts` whose prompt has at most `longest` tokens. It counts the others in `dropped`."""

    def __init__(self, starts: Iterator[Start], chat: Chat, longest: int) -> None:
        self.starts, self.chat, self.longest = starts, chat, longest
        self.dropped = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Start:
        """Return the next start that fits. TaskError after `MOST_TOO_LONG` in a row that do not."""
        length = 0
        for _ in range(MOST_TOO_LONG):
            start = next(self.starts)
            length = len(self.chat.encode(start.make().reset(seed=start.seed)[0]))
            if length <= self.longest:
                return start
            self.dropped += 1
        raise TaskError(
            f"draw a question: found {MOST_TOO_LONG} in a row that are too long, the last one with {length} "
            f"tokens of prompt. Beside a completion the model's context holds {self.longest}. Shorten the "
            "questions or the system prompt, lower max_new_tokens, or use a model with a longer context."
        )


def collect(
    starts: Iterator[Start],
    chat: Chat,
    sampler: Sampler,
    limits: Limits,
    *,
    num_prompts: int,
    group_size: int,
    version: int,
    silent: Callable[[Tensor, Tensor], Tensor],
    max_replacements: int,
    failures: Failures | None = None,
) -> Experience:
    """Sample `group_size` episodes from each of `num_prompts` starts, and fresh ones for silent groups.

    `silent` (rewards `[B]`, group `[B]`) → bool `[B]` says which groups carry no gradient; ValueError where
    it tells members of one group apart. Up to `max_replacements` further starts are tried, so that the chosen
    batch has `num_prompts` groups that do; when they run out, silent groups fill it up. Groups are chosen
    whole. Which ones depends on their rewards, and so does how many are sampled: the mean reward is that of
    the `first` rows, not of the chosen ones nor of all. Each round of replacements samples with the next
    seed, so that a start that comes again is answered anew. `starts` must not run out.

    A group with a completion that nobody could judge is never chosen: up to `num_prompts` further starts are
    tried in place of such groups, and after that the batch is smaller. The chosen groups are whole, so they
    estimate the gradient of E[R | judged]: the return among completions that can be judged. TaskError where
    `failures` has had enough of them, and where no group is left.
    """
    batches: list[Trajectories] = []
    loud: list[int] = []  # numbers of groups
    quiet: list[int] = []
    wanted, left, spare, groups = num_prompts, max_replacements, num_prompts, 0
    while wanted:
        opened = [next(starts) for _ in range(wanted)]
        fresh = replace(limits, seed=limits.seed + len(batches))
        batch = play(
            opened,
            chat,
            sampler,
            fresh,
            group_size=group_size,
            failures=failures,
            first_group=groups,
            version=version,
        )
        judged = _judged(batch, group_size)
        dead = _dead(batch, judged, silent, group_size)
        for i, is_dead in zip(judged, dead, strict=True):
            (quiet if is_dead else loud).append(groups + i)
        batches.append(batch)
        groups += wanted
        again = min(wanted - len(judged), spare)
        more = min(sum(dead), left)
        wanted, spare, left = again + more, spare - again, left - more
    sampled = join(batches)
    chosen = torch.tensor((loud + quiet)[:num_prompts])
    if not len(chosen):
        raise TaskError(_nothing_judged(sampled, groups))
    rows = chosen[:, None] * group_size + torch.arange(group_size)
    return Experience(sampled, rows.flatten(), torch.arange(num_prompts * group_size))


def _judged(batch: Trajectories, group_size: int) -> list[int]:
    """Return the places of the groups of which every completion was judged."""
    judged = [record.verdict.judged for record in batch.records]
    return [i for i in range(len(judged) // group_size) if all(judged[i * group_size : (i + 1) * group_size])]


def _dead(
    batch: Trajectories, places: list[int], silent: Callable[[Tensor, Tensor], Tensor], group_size: int
) -> list[bool]:
    """Return which of the groups at `places` are silent."""
    rows = (torch.tensor(places, dtype=torch.long)[:, None] * group_size + torch.arange(group_size)).flatten()
    return _whole(silent(batch.returns()[rows], batch.group[rows]), group_size) if places else []


def _nothing_judged(sampled: Trajectories, groups: int) -> str:
    failed = [record.verdict.why for record in sampled.records if not record.verdict.judged]
    return (
        f"sample a batch: found none of {groups} groups in which every completion could be judged; "
        f"{len(failed)} of {len(sampled)} verdicts failed. The last one: {failed[-1]}"
    )


def _whole(dead: Tensor, group_size: int) -> list[bool]:
    """Return which groups are silent, from bool `[B]` in the order of sampling.

    A group that is cut by its rewards leaves the extremes, whose baseline then depends on the action.
    """
    table = dead.view(-1, group_size)
    if bool((table != table[:, :1]).any()):
        raise ValueError(
            f"collect groups of {group_size}: found a `silent` that differs within a group. "
            "Return one answer for all its members, as estimators.group.silent does."
        )
    return table[:, 0].tolist()


def play(
    starts: Sequence[Start],
    chat: Chat,
    sampler: Sampler,
    limits: Limits,
    *,
    group_size: int,
    failures: Failures | None = None,
    first_group: int = 0,
    version: int = 0,
) -> Trajectories:
    """Play `group_size` episodes from each start: groups one after the other, numbered from `first_group`.

    An episode that nobody could judge has the reward NaN, as long as `failures` bears it; None bears none.
    """
    episodes = [(start.make(), start.seed) for start in starts for _ in range(group_size)]
    messages = [env.reset(seed=seed)[0] for env, seed in episodes]
    prompts = [tuple(chat.encode(m)) for m in messages[::group_size]]
    groups = sampler.sample(prompts, group_size, limits)
    completions = [c for group in groups for c in group]
    texts, tokens = [c.text for c in completions], [c.tokens for c in completions]
    judged = verdicts([env for env, _ in episodes], texts, tokens, failures)
    records = [
        Record(m[-1]["content"], c.text, verdict, c.stop)
        for m, c, verdict in zip(messages, completions, judged, strict=True)
    ]
    group = torch.arange(len(episodes)) // group_size
    return pack([prompts[i] for i in group.tolist()], completions, records, group + first_group, version)


def pack(
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[Completion],
    records: Sequence[Record],
    group: Tensor,
    version: int,
) -> Trajectories:
    """Lay completions out as `[B, T]`. The reward comes with the last token, where the episode terminates.

    A completion cut at its limit terminates too: the environment has judged it as it stands, nothing follows.
    Raises ValueError for a completion without tokens: its reward would belong to no action.
    """
    lengths = torch.tensor([len(c.tokens) for c in completions])
    if not lengths.all():
        raise ValueError(
            "pack completions: found one without tokens. A sampler returns at least the stop token."
        )
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    actions = torch.zeros(mask.shape, dtype=torch.long)
    actions[mask] = torch.tensor([t for c in completions for t in c.tokens])
    logp = torch.zeros(mask.shape)
    logp[mask] = torch.tensor([x for c in completions for x in c.logp])
    last = torch.zeros_like(mask)
    last[torch.arange(len(lengths)), lengths - 1] = True
    rewards = torch.zeros(mask.shape)
    rewards[last] = torch.tensor([float(r.verdict.reward) for r in records])
    return Trajectories(
        observations=prompts,
        actions=actions,
        mask=mask,
        logp=logp,
        rewards=rewards,
        terminated=last,
        truncated=torch.zeros_like(mask),
        group=group,
        version=torch.full((len(lengths),), version),
        records=tuple(records),
    )


def join(batches: Sequence[Trajectories]) -> Trajectories:
    """Put batches one after the other, padded to the longest."""
    longest = max(b.actions.shape[1] for b in batches)

    def stack(name: str) -> Tensor:
        columns: list[Tensor] = [getattr(b, name) for b in batches]
        return torch.cat([torch.nn.functional.pad(c, (0, longest - c.shape[1])) for c in columns])

    steps = {n: stack(n) for n in ("actions", "mask", "logp", "rewards", "terminated", "truncated")}
    return Trajectories(
        observations=[o for b in batches for o in b.numbers()],
        **steps,
        group=torch.cat([b.group for b in batches]),
        version=torch.cat([b.version for b in batches]),
        records=tuple(r for b in batches for r in b.records),
    )
