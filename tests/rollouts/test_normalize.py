"""Running moments against two passes over all rows, and against Gymnasium and Stable-Baselines3."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from gradhat.errors import ConfigError, RunError
from gradhat.rollouts.normalize import RewardScale, RunningMoments, normalise

GAMMA = 0.9


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    far=st.sampled_from([0.0, 1e7]),
)
@settings(max_examples=80, deadline=None)
def test_running_moments_are_those_of_two_passes(
    seed: int, sizes: list[int], shape: tuple[int, ...], far: float
) -> None:
    """In batches of any size, masked rows left out; also far from 0, where E[x²] - E[x]² has no digits."""
    random = np.random.default_rng(seed)
    moments, kept = RunningMoments(shape), np.zeros((0, *shape))
    for size in sizes:
        rows, own = random.normal(size=(size, *shape)) + far, random.random(size) < 0.7
        rows[~own] = np.nan
        moments.update(rows, own)
        kept = np.concatenate([kept, rows[own]])
    assert moments.count == len(kept)
    if len(kept):
        np.testing.assert_allclose(moments.mean, kept.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments.variance, kept.var(0), rtol=1e-6, atol=1e-9)
    else:
        assert np.isinf(moments.scale).all()


def test_rows_of_float32_are_summed_in_float64() -> None:
    rows = np.random.default_rng(0).normal(1000, 0.01, size=(4000, 2)).astype(np.float32)
    moments = RunningMoments((2,))
    moments.update(rows)
    np.testing.assert_allclose(moments.variance, rows.astype(np.float64).var(0), rtol=1e-9)


def test_a_normalised_number_is_its_distance_in_standard_deviations() -> None:
    """Worked by hand: 1 and 5 have mean 3 and deviation 2. What never varied is 0, whatever comes."""
    moments = RunningMoments((2,))
    moments.update(np.array([[1.0, 7.0], [5.0, 7.0]]))
    found = normalise(np.array([[3.0, 7.0], [6.0, 8.5], [-99.0, 107.0]]), moments)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.0, 0.0], [1.5, 0.0], [-10.0, 0.0]]
    assert normalise(np.array([9.0, 7.0]), moments, clip=2.0).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("unit", [1e-6, 1e6, 2.0**-40])
def test_a_normalised_number_has_no_unit(unit: float) -> None:
    """Observations in metres or in kilometres, rewards in euros or in cents, from the first step on. Some
    components vary by 1e-5 of what they are, some by rounding alone, some never.
    """
    random = np.random.default_rng(0)
    spread = np.array([1.0, 1e-5, 1e-8, 0.0])
    plain, other = RunningMoments((4,)), RunningMoments((4,))
    found: list[list[np.ndarray]] = [[], []]
    for size in (1, 2, 1, 5, 200):
        rows = 1.0 + spread * random.normal(size=(size, 4))
        final = rows[:1] + 0.5
        for side, moments, one in ((0, plain, 1.0), (1, other, unit)):
            moments.update(one * rows)
            found[side] += [normalise(one * rows, moments), normalise(one * final, moments)]
    np.testing.assert_allclose(np.concatenate(found[1]), np.concatenate(found[0]), atol=1e-4)
    last = found[0][-2]
    assert last[:, :2].std(0) == pytest.approx([1, 1], rel=0.1) and not np.any(last[:, 2:])

    lived = lives(4, 3, 60, die=0.1, cut=0.1)
    rewards = np.array([life.rewards for life in lived])
    rewards[:3] = 1.5
    scales = RewardScale(3, GAMMA), RewardScale(3, GAMMA)
    for life, paid in zip(lived, rewards, strict=True):
        mine, theirs = (
            scale.update(one * paid, life.terminated | life.truncated, life.own)
            for scale, one in zip(scales, (1.0, unit), strict=True)
        )
        np.testing.assert_allclose(theirs, mine, rtol=1e-5)


def test_a_frozen_copy_stays_while_the_original_goes_on() -> None:
    random = np.random.default_rng(0)
    moments = RunningMoments((3,))
    moments.update(random.normal(size=(5, 3)))
    frozen, x = moments.frozen(), random.normal(size=(4, 3))
    before = normalise(x, frozen)
    assert np.array_equal(before, normalise(x, moments))
    moments.update(random.normal(size=(5, 3)) + 4)
    frozen.update(random.normal(size=(5, 3)) + 4)
    assert np.array_equal(normalise(x, frozen), before)
    assert frozen.count == 5
    assert not np.array_equal(normalise(x, moments), before)


def test_restored_moments_go_on_to_the_bit() -> None:
    random = np.random.default_rng(0)
    first, second = RunningMoments((3,)), RunningMoments((3,))
    first.update(random.normal(size=(5, 3)))
    state = first.state()
    rows, x = random.normal(size=(7, 3)), random.normal(size=(4, 3))
    first.update(rows)
    second.restore(state)
    second.update(rows)
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.variance, second.variance)
    assert np.array_equal(normalise(x, first), normalise(x, second))
    with pytest.raises(RunError, match=r"shape \(2,\) were to be restored, found \(3,\)"):
        RunningMoments((2,)).restore(state)


class Life(NamedTuple):
    """One step of all environments, `[N]` each."""

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    own: np.ndarray


def lives(seed: int, num_envs: int, steps: int, *, die: float, cut: float) -> list[Life]:
    """Environments that end at random, a dummy step after every end. There stands NaN, and both flags."""
    random = np.random.default_rng(seed)
    ended, lived = np.zeros(num_envs, np.bool_), list[Life]()
    for _ in range(steps):
        own = ~ended
        terminated = random.random(num_envs) < die
        truncated = (random.random(num_envs) < cut) & ~terminated
        rewards = np.where(own, random.normal(1.0, 2.0, num_envs), np.nan)
        ended = own & (terminated | truncated)
        lived.append(Life(rewards, terminated | ~own, truncated | ~own, own))
    return lived


def plain_scale(lived: list[Life], resets_at: str) -> list[list[float]]:
    """The scaled rewards with a list of all returns, whose deviation is taken anew at every step."""
    behind, everything, answers = [0.0] * len(lived[0].own), list[float](), list[list[float]]()
    for life in lived:
        for env, own in enumerate(life.own):
            if own:
                behind[env] = GAMMA * behind[env] + life.rewards[env]
                everything.append(behind[env])
            reset = {
                "an end": own and (life.terminated[env] or life.truncated[env]),
                "a death": own and life.terminated[env],
                "nothing": False,
                "any flag": life.terminated[env] or life.truncated[env],
                "every dummy": not own,
            }[resets_at]
            behind[env] = 0.0 if reset else behind[env]
        std = np.std(everything) or abs(everything[0]) or 1.0
        scaled = np.clip(np.where(life.own, life.rewards, 0) / std, -10, 10)
        answers.append(scaled.tolist())
    return answers


@pytest.mark.parametrize("num_envs", [1, 3])
def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(num_envs: int) -> None:
    lived = lives(num_envs, num_envs, 200, die=0.1, cut=0.1)
    scale = RewardScale(num_envs, GAMMA)
    found = np.array(
        [scale.update(life.rewards, life.terminated | life.truncated, life.own) for life in lived]
    )
    assert found.dtype == np.float32
    right = plain_scale(lived, "an end")
    np.testing.assert_allclose(found, right, rtol=1e-5)
    # A flag on a dummy step resets what is 0 anyway: the same numbers.
    np.testing.assert_allclose(found, plain_scale(lived, "any flag"), rtol=1e-5)
    for wrong in ("a death", "nothing"):
        assert np.abs(found - plain_scale(lived, wrong)).max() > 0.1, wrong


def test_a_masked_step_in_the_middle_of_an_episode_changes_nothing() -> None:
    """Whatever its flags say: γ counts own steps and the sum goes on behind it."""
    lived = lives(3, 2, 100, die=0.0, cut=0.0)
    asleep = Life(np.full(2, np.nan), *np.ones((2, 2), np.bool_), np.zeros(2, np.bool_))
    with_naps = [step for life in lived for step in (life, asleep)]
    plain, napping = RewardScale(2, GAMMA), RewardScale(2, GAMMA)
    found = [plain.update(life.rewards, life.terminated, life.own) for life in lived]
    slept = [napping.update(life.rewards, life.terminated, life.own) for life in with_naps]
    assert np.array_equal(found, slept[::2])
    assert not np.any(slept[1::2])
    assert np.abs(np.array(plain_scale(with_naps, "every dummy"))[::2] - found).max() > 0.1


def test_after_a_reset_everywhere_the_sums_begin_anew_and_the_statistics_stay() -> None:
    """As if every episode had been cut at its last step."""
    lived = lives(2, 3, 40, die=0.0, cut=0.0)
    reset, cut = RewardScale(3, GAMMA), RewardScale(3, GAMMA)
    for time, life in enumerate(lived):
        found = reset.update(life.rewards, life.terminated, life.own)
        assert np.array_equal(found, cut.update(life.rewards, np.full(3, time == 20), life.own))
        if time == 20:
            reset.begin_anew()
    assert reset.moments.count == 120


def test_the_first_reward_is_not_blown_up() -> None:
    """One return has no spread, and neither have equal ones: they are divided by their size."""
    own, ended = np.ones(4, np.bool_), np.zeros(4, np.bool_)
    for paid, wanted in ((1.5, 1.0), (-1e-9, -1.0), (0.0, 0.0)):
        assert RewardScale(4, GAMMA).update(np.full(4, paid), ended, own).tolist() == [wanted] * 4


def test_a_restored_reward_scale_goes_on_to_the_bit_in_the_middle_of_episodes() -> None:
    lived = lives(5, 3, 60, die=0.1, cut=0.1)
    first, second = RewardScale(3, GAMMA), RewardScale(3, GAMMA)
    for life in lived[:30]:
        first.update(life.rewards, life.terminated | life.truncated, life.own)
    state = first.state()
    rest = [(life.rewards, life.terminated | life.truncated, life.own) for life in lived[30:]]
    expected = [first.update(*step) for step in rest]
    second.restore(state)
    assert np.array_equal([second.update(*step) for step in rest], expected)
    with pytest.raises(RunError, match="of 2 environments was to be restored, found one of 3"):
        RewardScale(2, GAMMA).restore(state)


def test_a_discount_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gamma=1\.5"):
        RewardScale(2, 1.5)


class Played(gymnasium.Env[Any, Any]):
    """An environment that plays back what is written: observations, rewards and ends."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Discrete(2)

    def __init__(self, lane: int, lived: list[Life], seen: np.ndarray) -> None:
        self.lane, self.lived, self.seen, self.time = lane, lived, seen, 0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return self.seen[self.time], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        life = self.lived[self.time]
        self.time += 1
        flags = bool(life.terminated[self.lane]), bool(life.truncated[self.lane])
        return self.seen[self.time], float(life.rewards[self.lane]), *flags, {}


def played(die: float, cut: float) -> tuple[list[Life], list[Any], np.ndarray]:
    """Three environments without dummy steps, what happens in them, and what is seen `[121, 3, 3]`."""
    random = np.random.default_rng(8)
    steps, num_envs = 120, 3
    seen = random.normal(2.0, 3.0, size=(steps + 1, num_envs, 3))
    lived = [
        Life(random.normal(1, 2, num_envs), dead, (random.random(num_envs) < cut) & ~dead, ~np.zeros(3, bool))
        for dead in (random.random((steps, num_envs)) < die)
    ]
    makers = [lambda lane=lane: Played(lane, lived, seen[:, lane]) for lane in range(num_envs)]
    return lived, makers, seen


def scaled(lived: list[Life]) -> np.ndarray:
    scale = RewardScale(3, GAMMA)
    return np.array(
        [scale.update(life.rewards, life.terminated | life.truncated, life.own) for life in lived]
    )


def test_observations_are_those_of_gymnasium() -> None:
    """Gymnasium counts 1e-4 rows of mean 0 before the first; without those, the same numbers."""
    lived, makers, seen = played(die=0.0, cut=0.0)
    env = NormalizeObservation(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP))
    env.obs_rms.count = 0.0
    theirs = [env.reset()[0]]
    theirs += [env.step(np.zeros(3, np.int64))[0] for _ in lived]
    moments, ours = RunningMoments((3,)), list[np.ndarray]()
    for rows in seen:
        moments.update(rows)
        ours.append(normalise(rows, moments))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rewards_are_those_of_gymnasium_where_episodes_are_cut_and_it_resets_at_once() -> None:
    """Its accumulator forgets the past before the last reward of an episode that terminates: there the two
    differ. With next-step resets it is not set to 0 at all."""
    lived, makers, _ = played(die=0.0, cut=0.1)
    env = NormalizeReward(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), gamma=GAMMA)
    env.return_rms.count = 0.0
    env.reset()
    theirs = [env.step(np.zeros(3, np.int64))[1] for _ in lived]
    np.testing.assert_allclose(scaled(lived), theirs, rtol=1e-5)


def test_rewards_are_those_of_stable_baselines_whatever_ends_the_episodes() -> None:
    lived, makers, _ = played(die=0.1, cut=0.1)
    env = VecNormalize(DummyVecEnv(makers), norm_obs=False, gamma=GAMMA)
    env.ret_rms.count = 0.0
    env.reset()
    theirs = [env.step(np.zeros(3, np.int64))[1] for _ in lived]
    np.testing.assert_allclose(scaled(lived), theirs, rtol=1e-5)
