"""Trajectories, values and estimates by plain loops over the tables of a world, without `exact`."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from gradhat.exact.mdp import TabularMDP


class Step(NamedTuple):
    t: int
    state: int
    action: int
    reward: float
    own: bool
    after: int
    """The next state."""
    last: bool


class Life(NamedTuple):
    """A trajectory."""

    chance: float
    steps: tuple[Step, ...]


def policy(mdp: TabularMDP, theta: np.ndarray) -> np.ndarray:
    """π(a | o) `[O, A]`."""
    e = np.exp(theta - theta.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def lives(mdp: TabularMDP, theta: np.ndarray) -> list[Life]:
    """Every trajectory of positive probability, by recursion."""
    pi = policy(mdp, theta)
    found: list[Life] = []

    def live(state: int, chance: float, steps: tuple[Step, ...]) -> None:
        if bool(mdp.terminal[state]) or len(steps) == mdp.horizon:
            found.append(Life(chance, steps))
            return
        own = bool(mdp.own[state])
        for a in range(mdp.num_actions if own else 1):
            of_action = pi[int(mdp.observation[state]), a] if own else 1.0
            for after in range(mdp.num_states):
                p = float(mdp.transition[state, a, after])
                if p > 0:
                    last = bool(mdp.terminal[after]) or len(steps) + 1 == mdp.horizon
                    reward = float(mdp.reward[state, a, after])
                    step = Step(len(steps), state, a, reward, own, after, last)
                    live(after, chance * of_action * p, (*steps, step))

    for s in range(mdp.num_states):
        if mdp.start[s] > 0:
            live(s, float(mdp.start[s]), ())
    return found


def value(mdp: TabularMDP, theta: np.ndarray) -> Callable[[int, int], float]:
    """V(t, s) by recursion."""
    pi = policy(mdp, theta)
    known: dict[tuple[int, int], float] = {}

    def v(t: int, s: int) -> float:
        if bool(mdp.terminal[s]) or t == mdp.horizon:
            return 0.0
        if (t, s) not in known:
            known[t, s] = sum(
                pi[int(mdp.observation[s]), a]
                * float(mdp.transition[s, a, x])
                * (float(mdp.reward[s, a, x]) + mdp.gamma * v(t + 1, x))
                for a in range(mdp.num_actions)
                for x in range(mdp.num_states)
                if mdp.transition[s, a, x] > 0
            )
        return known[t, s]

    return v


def total(mdp: TabularMDP, life: Life) -> float:
    """R(τ)."""
    return sum(mdp.gamma**step.t * step.reward for step in life.steps)


def to_go(mdp: TabularMDP, life: Life, t: int) -> float:
    """γ^t G_t, discounted from the start."""
    return sum(mdp.gamma**step.t * step.reward for step in life.steps[t:])


def score(mdp: TabularMDP, theta: np.ndarray, life: Life, weights: Sequence[float]) -> np.ndarray:
    """Σ_t w_t ∇ log π(a_t | o_t), flat, over own steps."""
    pi = policy(mdp, theta)
    gradient = np.zeros_like(pi)
    for step, w in zip(life.steps, weights, strict=True):
        if step.own:
            o = int(mdp.observation[step.state])
            gradient[o] -= w * pi[o]
            gradient[o, step.action] += w
    return gradient.ravel()


def gradient(mdp: TabularMDP, theta: np.ndarray) -> np.ndarray:
    """∇J = E Σ_t ∇ log π · R(τ)."""
    return sum(
        life.chance * score(mdp, theta, life, [total(mdp, life)] * len(life.steps))
        for life in lives(mdp, theta)
    )


class Seen(NamedTuple):
    """In units of ‖∇J‖ and, for the variance, ‖∇J‖²."""

    norm_ratio: float
    bias: float
    variance: float
    """Of one estimate, not of one trajectory."""


def seen(truth: np.ndarray, chances: Sequence[float], estimates: Sequence[np.ndarray]) -> Seen:
    """Mean and total variance of the estimates."""
    mean = sum(p * g for p, g in zip(chances, estimates, strict=True))
    spread = sum(p * float(((g - mean) ** 2).sum()) for p, g in zip(chances, estimates, strict=True))
    length = float(np.linalg.norm(truth))
    return Seen(
        float(np.linalg.norm(mean)) / length, float(np.linalg.norm(mean - truth)) / length, spread / length**2
    )


def groups(mdp: TabularMDP, found: list[Life], size: int) -> list[tuple[float, tuple[Life, ...]]]:
    """Every ordered group that shares a start, drawn once for the group."""
    of_start: dict[int, list[Life]] = {}
    for life in found:
        of_start.setdefault(life.steps[0].state, []).append(life)
    return [
        (math.prod(x.chance for x in chosen) / sum(x.chance for x in pool) ** (size - 1), chosen)
        for pool in of_start.values()
        for chosen in itertools.product(pool, repeat=size)
    ]


def check_labels(figure: Figure) -> None:
    """Fail where two texts of the figure overlap, or one is cut off at its edge."""
    figure.draw_without_rendering()
    # Of the text alone: an annotation counts its arrow as well.
    texts = [text for ax in figure.axes for text in written(ax)]
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def written(ax: Axes) -> list[Text]:
    """Every text that is seen in a panel."""
    ticks = [
        tick.label1
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
        for tick in axis.get_major_ticks()
        if min(limits) <= tick.get_loc() <= max(limits)
    ]
    names = [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
    return [text for text in (*ax.texts, *ticks, *names) if text.get_text() and text.get_visible()]
