"""Runs of a few updates, on one thread, as numbers: what `tests/golden/*.json` holds of each.

All but those of a language model are in float64.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import drift
import language_runs
import torch
from torch import Tensor

from gradhat.algorithms import a2c, ddpg, dqn, grpo, ppo, reinforce, sac, tabular_control, td3, trpo
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.algorithms.learner import GroupLearner, ReinforceLearner
from gradhat.policies.tabular import Logits, TabularPolicy
from gradhat.training.control import settings
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.off_policy import Memory
from gradhat.training.control.on_policy import Network
from gradhat.training.control.session import prepare
from gradhat.training.optim import MasterAdamW
from gradhat.training.run_folder import RunFolder
from gradhat.trajectories import Trajectories

FOLDER = Path(__file__).parent
F64 = torch.float64
NUM_LINES = 3
TOLERANCE = (1e-9, 1e-12)
"""Another processor may round the last bit of an exponential differently."""
CLOCK = ("step_time", "frames_per_second", "time/")
PLAIN = Network(hidden=(5, 4), lr=0.01)
NORMALISED = Network(
    hidden=(5, 4), lr=0.01, normalize_observations=True, normalize_rewards=True, log_std=-0.5
)
MEMORY = Memory(capacity=90, first_frames=40, num_steps=2, num_updates=2, batch_size=8, lr_end=1e-4)
RAINBOW = dqn.Settings(
    hidden=(5, 4),
    dueling=True,
    n_step=3,
    alpha=0.6,
    num_atoms=7,
    low=-4.0,
    high=9.0,
    target_every=5,
    epsilon_frames=100,
)
TABLE = tabular_control.Settings(gamma=0.9, epsilon_frames=150)
OFF = Network((5, 4), -0.5, 0.01, 0.002, 0.3, normalize_observations=True, normalize_rewards=True)
OFF_MEMORY = Memory(90, 40, 2, 2, 8, 1e-4)
OFF_TABLE = tabular_control.Settings(0.8, 1.5, 0.6, epsilon_start=0.9, epsilon_end=0.2, epsilon_frames=150)

CONTROL: dict[str, tuple[Any, str]] = {
    "reinforce": (settings.Reinforce(network=PLAIN), drift.ENV),
    "reinforce_critic": (
        settings.Reinforce(
            network=PLAIN,
            value_epochs=2,
            settings=reinforce.Settings(gamma=0.9, credit="discounted", baseline="critic"),
        ),
        drift.ENV,
    ),
    "a2c": (settings.A2C(6, PLAIN, a2c.Settings(entropy_coef=0.01)), drift.ENV),
    "ppo": (settings.PPO(12, PLAIN, ppo.Settings(num_epochs=2)), drift.ENV),
    "ppo_continuous": (settings.PPO(12, NORMALISED, ppo.Settings(num_epochs=2)), "continuous"),
    "trpo": (settings.TRPO(12, PLAIN, trpo.Settings(value_epochs=2)), drift.ENV),
    "trpo_continuous": (settings.TRPO(12, NORMALISED, trpo.Settings(value_epochs=2)), "continuous"),
    "dqn": (settings.DQN(MEMORY, dqn.Settings(hidden=(5, 4), target_every=5, epsilon_frames=100)), drift.ENV),
    "dqn_rainbow": (settings.DQN(MEMORY, RAINBOW), drift.ENV),
    "ddpg": (settings.DDPG(MEMORY, ddpg.Settings(hidden=(5, 4))), "continuous"),
    "td3": (settings.TD3(MEMORY, td3.Settings(hidden=(5, 4), n_step=2)), "continuous"),
    "sac": (settings.SAC(MEMORY, sac.Settings(hidden=(5, 4), n_step=2)), "continuous"),
    "monte_carlo": (settings.MonteCarlo(7, TABLE), "zoo:hurry"),
    "sarsa": (settings.Sarsa(7, TABLE), "zoo:random"),
    "expected_sarsa": (settings.ExpectedSarsa(7, TABLE), "zoo:chain"),
    "q_learning": (settings.QLearning(7, TABLE), "zoo:chain"),
    "reinforce_off": (
        settings.Reinforce(2, 3, 2, OFF, reinforce.Settings(gamma=0.9, credit="total", baseline="critic")),
        "continuous",
    ),
    "reinforce_off_average": (
        settings.Reinforce(2, network=OFF, settings=reinforce.Settings(0.5, 0.9, "total", "moving_average")),
        "continuous",
    ),
    "a2c_off": (settings.A2C(6, OFF, a2c.Settings(0.9, 0.7, 0.3, 0.02, True)), "continuous"),
    "ppo_off": (
        settings.PPO(12, OFF, ppo.Settings(0.9, 0.7, 0.1, 0.3, 3, 2, 0.3, 0.02, False, 0.05)),
        "continuous",
    ),
    "trpo_off": (settings.TRPO(12, OFF, trpo.Settings(0.9, 0.7, 0.03, 5, 0.2, 0.5, 4, 3, 2)), "continuous"),
    "dqn_off": (
        settings.DQN(
            OFF_MEMORY,
            dqn.Settings(
                lr=2e-3,
                hidden=(5, 4),
                gamma=0.9,
                double=False,
                dueling=True,
                n_step=3,
                alpha=0.5,
                beta=0.3,
                num_atoms=5,
                low=-4.0,
                high=6.0,
                target_every=5,
                tau=0.4,
                epsilon_start=0.8,
                epsilon_end=0.2,
                epsilon_frames=100,
            ),
        ),
        drift.ENV,
    ),
    "dqn_off_numbers": (settings.DQN(OFF_MEMORY, dqn.Settings(hidden=(5, 4), delta=0.5)), drift.ENV),
    "ddpg_off": (settings.DDPG(OFF_MEMORY, ddpg.Settings(2e-3, (5, 4), 0.9, 2, 0.02, 0.3)), "continuous"),
    "td3_off": (
        settings.TD3(OFF_MEMORY, td3.Settings(2e-3, (5, 4), 0.9, 2, 0.02, 0.3, 0.4, 0.3, 3)),
        "continuous",
    ),
    "sac_off": (settings.SAC(OFF_MEMORY, sac.Settings(1e-3, (5, 4), 0.9, 3, 0.02, 0.4, -0.5)), "continuous"),
    "monte_carlo_off": (settings.MonteCarlo(7, OFF_TABLE), "zoo:random"),
    "sarsa_off": (settings.Sarsa(7, OFF_TABLE), "zoo:random"),
    "expected_sarsa_off": (settings.ExpectedSarsa(7, OFF_TABLE), "zoo:random"),
    "q_learning_off": (settings.QLearning(7, OFF_TABLE), "zoo:random"),
}
"""Settings, and the world: an id, or "continuous" for the continuous version of the drift. A3C with one
worker is A2C to the bit, with several it is no function of its config. In a run that ends in "_off" no
setting has its default: one that reaches nothing, or the wrong place, shows there."""


def control(name: str) -> dict[str, Any]:
    """Return what a short run in a Gymnasium world measures, and its weights."""
    learning, env = CONTROL[name]
    config = ControlConfig(
        learning,
        drift.ENV if env == "continuous" else env,
        env_args=("continuous=True",) if env == "continuous" else (),
        num_envs=3,
        num_frames=NUM_LINES * 60,
        log_every=60,
        eval_every=60,
        eval_episodes=2,
        eval_max_steps=15,
        seed=3,
    )
    session = prepare(config)
    try:
        lines = [session.before(RunFolder(Path()))]
        lines += [session.advance(None, None) for _ in range(NUM_LINES)]  # pyright: ignore
        state = session.agent.state()
    finally:
        session.close()
    learned = {k: t for k, t in state.items() if k.startswith(("weights/", "algorithm/")) or k == "q"}
    floats = {k: t for k, t in learned.items() if t.is_floating_point() and not k.endswith(".step")}
    return {"lines": [_timeless(line) for line in lines], "weights": _digest(floats)}


def text(name: str) -> dict[str, Any]:
    """Return what three batches of two prompts leave in a table of logits."""
    draw = torch.Generator().manual_seed(3)
    policy = TabularPolicy(Logits(torch.randn(6, 3, generator=draw, dtype=F64)), num_rows=3)
    reference = TabularPolicy(Logits(torch.randn(6, 3, generator=draw, dtype=F64)))
    optimizer = MasterAdamW(policy.module, lr=0.05)
    if name in FAMILY:
        numbers = grpo.Settings(length=4, kl_coef=0.05, num_epochs=2)
        learner = GroupLearner(policy, optimizer, FAMILY[name], numbers, reference)
    else:
        learner = ReinforceLearner(policy, optimizer, reinforce.Settings(decay=0.7), 0.1)
    lines = [learner.learn(_batch(policy, draw))[1] for _ in range(NUM_LINES)]
    return {"lines": lines, "weights": _digest(policy.module.state_dict())}


def _batch(policy: TabularPolicy, draw: torch.Generator) -> Trajectories:
    """Eight completions of 1 to 4 tokens, of two prompts."""
    mask = torch.arange(4) < torch.randint(1, 5, (8, 1), generator=draw)
    seen = torch.randint(6, (8, 4), generator=draw) * mask
    actions, logp = policy.act(seen.flatten(), draw)
    last = mask.long().sum(1, keepdim=True) - 1 == torch.arange(4)
    return Trajectories(
        observations=[tuple(row) for row in seen.tolist()],
        actions=actions.reshape(8, 4),
        mask=mask,
        logp=torch.where(mask, logp.reshape(8, 4), 0),
        rewards=torch.rand(8, 4, generator=draw, dtype=F64) * last,
        terminated=last,
        truncated=torch.zeros_like(last),
        group=torch.arange(8) // 4,
        version=torch.zeros(8, dtype=torch.long),
    )


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: partial(control, name) for name in CONTROL},
    **{f"text_{name}": partial(text, name) for name in ("reinforce", *FAMILY)},
    **{name: partial(language_runs.run, name) for name in language_runs.CONFIGS},
}


def numbers_of(name: str) -> dict[str, Any]:
    """Return the numbers of a run, computed now."""
    if name in language_runs.CONFIGS:
        return RUNS[name]()
    with _doubles():
        return RUNS[name]()


def tolerance_of(name: str) -> tuple[float, float]:
    """Return how far its numbers may be from those that are kept, as a share and in size."""
    return language_runs.TOLERANCE if name in language_runs.CONFIGS else TOLERANCE


def file_of(name: str) -> Path:
    """Return where they are kept."""
    return FOLDER / f"{name}.json"


def write(name: str) -> None:
    """Keep the numbers of a run as they are now."""
    file_of(name).write_text(json.dumps(numbers_of(name), indent=1, sort_keys=True) + "\n")


@contextmanager
def _doubles() -> Iterator[None]:
    """Networks are made in float64, and torch computes on one thread."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(F64)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])


def _timeless(line: Mapping[str, float]) -> dict[str, float | None]:
    return {k: v if math.isfinite(v) else None for k, v in line.items() if not k.startswith(CLOCK)}


def _digest(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return of each tensor its sum, the sum of its sizes, and both weighed by place: what moves shows."""
    found: dict[str, list[float]] = {}
    for name, tensor in tensors.items():
        assert tensor.dtype == F64, f"{name} is {tensor.dtype}"
        flat = tensor.detach().flatten()
        places = torch.arange(1, len(flat) + 1, dtype=F64)
        found[name] = torch.stack([flat.sum(), flat.abs().sum(), (flat * places).sum() / len(flat)]).tolist()
    return found
