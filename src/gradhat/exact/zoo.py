"""Small worlds, each for a reason. `ZOO` names one of each for the command line.

Each docstring says what a world is for. Terminal states come last, one of them where nothing else is said,
and show an observation of their own. Where a number of steps is named, the docstring says whether it is a
horizon, at which the problem ends, or a time limit, behind which it goes on; other worlds have neither, and
end by themselves or never.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gradhat.exact.mdp import TabularMDP, tabular

UP, RIGHT, DOWN, LEFT = range(4)
"""The actions on a grid, in Gymnasium's order."""
FOUR_ROOMS = """
#############
#     #     #
#     #     #
#           #
#     #     #
#     #     #
## ####     #
#     ### ###
#     #     #
#     #     #
#           #
#     #     #
#############
"""
TABLES_LIMIT = 2 * 10**9
"""Most bytes that P and r of a token MDP take together."""


def bandit(rewards: Sequence[float] = (1.0, 0.5, 0.0)) -> TabularMDP:
    """One step, one arm per reward. For: what a baseline and a scale do to a group, by hand.

    J = Σ_a π(a) r(a).
    """
    transition = torch.zeros(2, len(rewards), 2)
    transition[:, :, 1] = 1
    paid = torch.zeros(2, len(rewards), dtype=torch.float64)
    paid[0] = torch.tensor(rewards, dtype=torch.float64)
    return tabular(transition, paid, _one(2, 0), gamma=1.0, terminal=_last(2))


def chain(length: int = 4, *, gamma: float = 0.9, early: float = 0.1) -> TabularMDP:
    """Go on (action 1) `length` times for a reward of 1, or quit (0) for `early`. For: delayed credit.

    With π(1) = p everywhere, n steps before the goal: v_n = p γ v_{n-1} + (1 - p) early, where γ v_0 is 1.
    """
    here = torch.arange(length)
    transition = torch.zeros(length + 1, 2, length + 1)
    transition[here, 0, length] = 1
    transition[here, 1, here + 1] = 1
    reward = torch.zeros(length + 1, 2, dtype=torch.float64)
    reward[:length, 0] = early
    reward[length - 1, 1] = 1
    return tabular(transition, reward, _one(length + 1, 0), gamma=gamma, terminal=_last(length + 1))


def hurry(
    length: int = 6, *, gamma: float = 0.9, early: float = 0.3, time_limit: int | None = 2
) -> TabularMDP:
    """The chain from any of its cells, seen for two steps. For: what is cut, and what ends.

    The number of steps is a time limit: going on is worth its way to the goal, although few trajectories are
    seen to get there. Who takes the cut for an end sees 0 behind it, and learns to quit.
    """
    mdp = chain(length, gamma=gamma, early=early)
    start = (~mdp.terminal).double() / length
    return replace(mdp, start=start, time_limit=time_limit)


def cliff_walk() -> TabularMDP:
    """Walk along a cliff, 4 × 12 cells numbered row by row. For: long trajectories, γ = 1, rare disasters.

    Source: Sutton & Barto 2018, example 6.6. Each move costs 1; a step off the edge costs 100 and leads back
    to the start. J* = -13. The cells of the cliff are states that nobody visits.
    """
    start, goal, edge = 36, 47, torch.arange(37, 47)
    following = _moves([(row, column) for row in range(4) for column in range(12)])
    falls = torch.isin(following, edge)
    transition = _onto(torch.where(falls, start, following))
    reward = torch.where(falls, -100.0, -1.0)
    return tabular(transition, reward, _one(48, start), gamma=1.0, terminal=_one(48, goal))


def four_rooms(slip: float = 1 / 3, *, gamma: float = 0.9) -> TabularMDP:
    """Four rooms with a door between neighbours; 104 cells. For: sparse reward, many states.

    Source: the rooms example of Sutton, Precup & Singh 1999 and its slip: with this probability a move goes
    in one of the other three directions. Walls hold. Here the goal is the lower right corner, which pays 1,
    and all other cells are equally likely starts. The upper left corner is 20 moves away.
    """
    rows = FOUR_ROOMS.strip().splitlines()
    cells = [(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == " "]
    wanted = _onto(_moves(cells))
    other = (wanted.sum(1, keepdim=True) - wanted) / 3
    reward = torch.zeros(len(cells), 4, len(cells))
    reward[:, :, -1] = 1
    return tabular(
        (1 - slip) * wanted + slip * other,
        reward,
        (~_last(len(cells))).double() / (len(cells) - 1),
        gamma=gamma,
        terminal=_last(len(cells)),
    )


def two_states() -> TabularMDP:
    """Two states that look alike. For: what happens when γ^t is dropped from the policy gradient.

    Nota & Thomas 2020 prove that the direction without γ^t is not the gradient of any function, and construct
    a world where it leads to the policy that is worst with and without discount. So does this one, with
    numbers of its own. Action 0 pays 1 in the first state, and in the second 2.5 one step late; action 1 pays
    0, then 3. With π(0) = p and γ = 1/2

        J = 1.5 + 0.125 p        without discount 3 + 0.5 p        γ^t dropped: ∂/∂p = -0.75

    so that both objectives want p = 1, and the dropped direction goes to p = 0.
    """
    first, second, waiting, end = range(4)
    transition = torch.zeros(4, 2, 4)
    transition[first, :, second] = 1
    transition[second, 0, waiting] = 1
    transition[second, 1, end] = 1
    transition[waiting, :, end] = 1
    reward = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.5, 2.5], [0.0, 0.0]])
    return tabular(
        transition,
        reward,
        _one(4, first),
        gamma=0.5,
        terminal=_one(4, end),
        observation=torch.tensor([0, 0, 1, 2]),
    )


def random_mdp(
    num_states: int = 3,
    num_actions: int = 2,
    *,
    seed: int = 0,
    gamma: float = 0.9,
    horizon: int | None = 4,
    branching: int = 2,
    num_observations: int | None = None,
    num_terminal: int = 0,
) -> TabularMDP:
    """Return a world drawn at random. For: properties that must hold everywhere.

    The number of steps is a horizon: what follows is no part of the problem. The policy sees the state and
    not the step, on which values depend; `with_time` shows it.

    Every state and action leads to `branching` states, with probabilities uniform on the simplex: the GARNET
    worlds of Archibald, McKinnon & Thomas 1995. Rewards r(s, a, s′) are standard normal. The last
    `num_terminal` states are terminal. State s shows observation s mod `num_observations`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (num_states, num_actions, num_states)
    successors = torch.rand(shape, generator=generator).argsort(-1)[..., :branching]
    weights = torch.empty(successors.shape, dtype=torch.float64).exponential_(generator=generator)
    transition = torch.zeros(shape, dtype=torch.float64)
    transition.scatter_(-1, successors, weights / weights.sum(-1, keepdim=True))
    start = torch.empty(num_states, dtype=torch.float64).exponential_(generator=generator)
    return tabular(
        transition,
        torch.randn(shape, dtype=torch.float64, generator=generator),
        start / start.sum(),
        gamma=gamma,
        terminal=torch.arange(num_states) >= num_states - num_terminal,
        observation=torch.arange(num_states) % (num_observations or num_states),
        horizon=horizon,
    )


def corridor(horizon: int | None = None) -> TabularMDP:
    """Three cells that look alike, left (0) and right (1) switched in the second. For: a stochastic optimum.

    Source: Sutton & Barto 2018, example 13.1. Each step costs 1. With π(right) = p and without a horizon J =
    -2 (2 - p) / (p (1 - p)), at best -11.66 for p = 2 - √2 ≈ 0.59. Any deterministic policy stays for ever.
    The number of steps is a horizon: the problem ends there, and those who stay have paid for it. With 8
    steps the best is -6.56, for p = 0.613, and every deterministic policy has the worst return there is, -8.
    The step is hidden, as the cell is: who counts steps goes straight.
    """
    following = torch.tensor([[0, 1], [2, 0], [1, 3], [3, 3]])
    return tabular(
        _onto(following),
        torch.full((4, 2), -1.0),
        _one(4, 0),
        gamma=1.0,
        terminal=_last(4),
        observation=torch.tensor([0, 0, 0, 1]),
        horizon=horizon,
    )


def tiger(horizon: int | None = 4, *, gamma: float = 0.95) -> TabularMDP:
    """Listen (0), or open the left (1) or right (2) door; a tiger waits behind one. For: noisy observation.

    Source: Cassandra, Kaelbling & Littman 1994. Listening costs 1 and tells with probability 0.85 behind
    which door the tiger is, else the other one; the tiger costs 100, the other door pays 10 and ends the
    trajectory, as the tiger does. The policy sees what it heard last: 0 nothing, 1 left, 2 right; 3 is the
    end. State 3 · side + heard. The number of steps is a horizon: the problem ends there.

    With 4 steps and γ = 0.95 the best return is 10 for who sees the state and 2.091 for who remembers all
    that was heard. Without memory it is -3.710: never open, listen to the end. No policy here remembers, so
    that is what every algorithm can learn.
    """
    transition, reward = torch.zeros(7, 3, 7, dtype=torch.float64), torch.zeros(7, 3)
    for side, heard in itertools.product(range(2), range(3)):
        s = 3 * side + heard
        transition[s, 0, 3 * side + 1 + side] = 0.85
        transition[s, 0, 3 * side + 2 - side] = 0.15
        transition[s, 1:, 6] = 1
        reward[s] = torch.tensor([-1.0, -100.0, 10.0] if side == 0 else [-1.0, 10.0, -100.0])
    start = (_one(7, 0).double() + _one(7, 3).double()) / 2
    return tabular(
        transition,
        reward,
        start,
        gamma=gamma,
        terminal=_last(7),
        observation=torch.tensor([0, 1, 2, 0, 1, 2, 3]),
        horizon=horizon,
    )


Words = tuple[int, ...]
"""A text without its end token."""
Verifier = Callable[[Words, bool], float]
"""(words, ended) → reward. `ended`: by the end token; else the text was cut."""
Observe = Callable[[int, Words], Hashable]
"""(prompt, words so far) → what the policy sees. States with equal answers look alike."""


class WorldTurn(NamedTuple):
    """Where the world speaks: after `after` words it adds one, drawn from the distribution `words`."""

    after: int
    words: tuple[float, ...]


def says(*wanted: int) -> Verifier:
    """Return the verifier that pays 1 for a text with all the `wanted` words, in any order, and an end token.

    The more words are wanted, the harder it is, and the longer right answers are.
    """
    return lambda words, ended: float(ended and set(wanted) <= set(words))


def exactly(times: int) -> Verifier:
    """Return the verifier that pays 1 for a text with word 0 exactly `times` times and an end token.

    A text can be spoiled here: once there are too many, nothing that follows makes it right.
    """
    return lambda words, ended: float(ended and words.count(0) == times)


def whole(prompt: int, words: Words) -> Hashable:
    """Show the whole text: the state itself."""
    return prompt, words


def last_word(prompt: int, words: Words) -> Hashable:
    """Show the prompt, the number of words and the last one: a small θ."""
    return prompt, len(words), words[-1:]


def token_mdp(
    num_words: int = 4,
    length: int = 6,
    *,
    verifiers: Sequence[Verifier] = (says(0, 1),),
    observation: Observe = whole,
    turn: WorldTurn | None = None,
) -> TabularMDP:
    """A toy language. For: everything about text whose exact value is wanted.

    Each step emits one of V = `num_words` words or, action V, the end token. After `length` words the text is
    cut and judged as it stands. The reward comes with the last step; γ = 1. A state is a prompt and the words
    so far; each verifier is a prompt, all equally likely. There are Σ_{k=0}^{length} V^k completions: 5,461
    for V = 4 and length 6. The default verifier wants words 0 and 1: under uniform logits 0.116 of the texts
    are right, with 4.8 tokens on average (end token included), and the wrong ones have 3.5.

    With a `turn` one of the `length` words is the world's; the step is not the policy's own.

    ValueError: a turn that leaves the policy no word after it or that is no distribution over V words; tables
    beyond `TABLES_LIMIT`.
    """
    _check_tokens(num_words, length, len(verifiers), turn)
    prefixes = [w for k in range(length) for w in itertools.product(range(num_words), repeat=k)]
    texts = [(prompt, words) for prompt in range(len(verifiers)) for words in prefixes]
    index = {text: s for s, text in enumerate(texts)}
    end = len(texts)
    transition = torch.zeros(end + 1, num_words + 1, end + 1, dtype=torch.float64)
    reward = torch.zeros_like(transition)
    own = torch.ones(end + 1, dtype=torch.bool)
    for (prompt, words), s in index.items():
        if turn is not None and len(words) == turn.after:
            own[s] = False
            for word, chance in enumerate(turn.words):
                transition[s, :, index[prompt, (*words, word)]] = chance
            continue
        for action in range(num_words + 1):
            ended = action == num_words
            text = words if ended else (*words, action)
            following = end if ended else index.get((prompt, text), end)
            transition[s, action, following] = 1
            if following == end:
                reward[s, action, end] = verifiers[prompt](text, ended)
    start = torch.zeros(end + 1, dtype=torch.float64)
    start[[index[prompt, ()] for prompt in range(len(verifiers))]] = 1 / len(verifiers)
    return tabular(
        transition,
        reward,
        start,
        gamma=1.0,
        terminal=_last(end + 1),
        observation=_numbered([observation(*text) for text in texts]),
        own=own,
    )


def _check_tokens(num_words: int, length: int, num_prompts: int, turn: WorldTurn | None) -> None:
    if min(num_words, length, num_prompts) < 1:
        raise ValueError(
            f"token_mdp with num_words={num_words}, length={length} and {num_prompts} verifiers: found a "
            "number below 1. Each must be at least 1."
        )
    if turn is not None and (len(turn.words) != num_words or not 0 <= turn.after < length - 1):
        raise ValueError(
            f"turn after {turn.after} of length={length} words, with {len(turn.words)} probabilities for "
            f"num_words={num_words}: give one for each word, and leave the policy a word after the turn."
        )
    num_states = num_prompts * sum(num_words**k for k in range(length)) + 1
    size = 16 * num_states**2 * (num_words + 1)
    if size > TABLES_LIMIT:
        raise ValueError(
            f"token_mdp with {num_states} states: found tables of {size / 1e9:.3g} GB, the limit is "
            f"{TABLES_LIMIT / 1e9:.3g} GB. Use fewer words, a smaller length or fewer verifiers."
        )


def _numbered(observations: list[Hashable]) -> Tensor:
    """Return the numbers of the observations, by first appearance, and one more for the end."""
    numbers = {seen: number for number, seen in enumerate(dict.fromkeys(observations))}
    return torch.tensor([numbers[seen] for seen in observations] + [len(numbers)])


def _one(size: int, place: int) -> Tensor:
    """Return bool `[size]`, true at `place`."""
    return torch.arange(size) == place


def _last(size: int) -> Tensor:
    return _one(size, size - 1)


def _onto(following: Tensor) -> Tensor:
    """Return P `[S, A, S]` of a world that surely goes to `following` `[S, A]`."""
    return torch.nn.functional.one_hot(following, len(following)).double()


def _moves(cells: list[tuple[int, int]]) -> Tensor:
    """Return the cell that each action leads to, `[S, 4]`. Where there is no cell one stays."""
    index = {cell: s for s, cell in enumerate(cells)}
    ways = {UP: (-1, 0), RIGHT: (0, 1), DOWN: (1, 0), LEFT: (0, -1)}
    return torch.tensor(
        [[index.get((i + ways[a][0], j + ways[a][1]), s) for a in range(4)] for (i, j), s in index.items()]
    )


ZOO: dict[str, Callable[[], TabularMDP]] = {
    "bandit": bandit,
    "chain": chain,
    "hurry": hurry,
    "cliff_walk": cliff_walk,
    "four_rooms": four_rooms,
    "two_states": two_states,
    "random": random_mdp,
    "luck": partial(random_mdp, horizon=2),
    "corridor": partial(corridor, horizon=8),
    "tiger": tiger,
    "token": token_mdp,
    "small": partial(token_mdp, 2, 3, verifiers=(says(0), says(0, 1))),
    "prompts": partial(token_mdp, 3, 3, verifiers=(says(), says(0), says(0, 1))),
    "turn": partial(token_mdp, 2, 4, turn=WorldTurn(2, (0.5, 0.5))),
}
"""Name → world, for the command line. All can be enumerated but `cliff_walk` and `four_rooms`, which loop."""
