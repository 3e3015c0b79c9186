"""Settings that learn, by algorithm and environment; `gradhat train ALGORITHM --env ID` starts from them."""

from dataclasses import replace
from typing import Any

from gradhat.algorithms import a2c, ddpg, dqn, ppo, reinforce, sac, tabular_control, td3, trpo
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.hogwild import A3C
from gradhat.training.control.off_policy import Memory
from gradhat.training.control.on_policy import Network
from gradhat.training.control.settings import A2C, DDPG, DQN, PPO, SAC, TD3, TRPO, QLearning, Reinforce, Sarsa


def control(algorithm: str, env: str) -> ControlConfig[Any]:
    """Return the settings of `algorithm` that are tuned to `env`, or its defaults with that environment."""
    tuned = {(config.algorithm, config.env): config for config in TUNED}.get((algorithm, env))
    return tuned or replace(ControlConfig(ALGORITHMS[algorithm].learning), env=env)


# A critic of raw numbers can stay a constant for a third of a short run: `explained_variance` shows it.
NORMALIZED = Network(normalize_observations=True, normalize_rewards=True)

CARTPOLE = (
    ControlConfig(
        Reinforce(network=Network(lr=1e-2), settings=reinforce.Settings(gamma=0.99, baseline="critic")),
    ),
    ControlConfig(A2C(num_steps=8, network=replace(NORMALIZED, lr=2e-3)), num_envs=16),
    ControlConfig(A3C(num_steps=8, network=Network(lr=3e-3, max_grad_norm=10.0)), num_envs=16),
    # Where no episode fails any more, advantages are rounding errors of the critic. Brought to deviation 1
    # they would move the policy at full length, until it falls.
    ControlConfig(
        PPO(
            num_steps=32,
            network=replace(NORMALIZED, lr=1e-2, max_grad_norm=1.0),
            settings=ppo.Settings(num_epochs=2, normalize_adv=False),
        ),
        num_envs=64,
    ),
    ControlConfig(
        TRPO(
            num_steps=64,
            network=Network(lr=5e-3, max_grad_norm=10.0),
            settings=trpo.Settings(max_kl=0.02),
        ),
        num_envs=16,
    ),
    ControlConfig(
        DQN(
            # Returns of twelve steps hold what the policy did then. With all 50,000 frames in the memory
            # those of its first, bad policies keep Q low, and one run in five climbs too slowly.
            memory=Memory(capacity=10_000, num_steps=32, num_updates=45, batch_size=128, lr_end=0.0),
            # A drift to the edge of the track shows its price a hundred steps later: long returns help.
            settings=dqn.Settings(
                lr=6e-3,
                n_step=12,
                target_every=100,
                epsilon_end=0.04,
                epsilon_frames=8_000,
            ),
        ),
        num_frames=50_000,
        log_every=1_000,
        eval_every=10_000,
        checkpoint_every=25_000,
    ),
)

CLIFF = tabular_control.Settings(gamma=1.0, alpha=0.1, omega=0.0, epsilon_start=0.1, epsilon_end=0.1)
ICE = tabular_control.Settings(gamma=0.99, alpha=30.0, omega=1.0, epsilon_end=0.3, epsilon_frames=200_000)

TABLES = (
    # One world, two answers: Q-learning walks the edge, SARSA knows that it explores and keeps away.
    *(
        ControlConfig[Any](learning, env="CliffWalking-v1", num_envs=16, num_frames=100_000)
        for learning in (Sarsa(settings=CLIFF), QLearning(settings=CLIFF))
    ),
    ControlConfig(QLearning(settings=ICE), env="FrozenLake-v1", num_envs=100, num_frames=1_000_000),
)

SCALED = replace(NORMALIZED, lr=2.5e-3)

ACROBOT = (
    ControlConfig(
        A2C(
            network=replace(SCALED, lr=3e-3),
            settings=a2c.Settings(entropy_coef=0.01),
        ),
        env="Acrobot-v1",
        num_envs=16,
        num_frames=300_000,
    ),
    ControlConfig(
        PPO(network=SCALED, settings=ppo.Settings(num_epochs=10)),
        env="Acrobot-v1",
        num_envs=16,
        num_frames=300_000,
    ),
    ControlConfig(
        DQN(
            memory=Memory(num_steps=16, num_updates=64, lr_end=0.0),
            settings=dqn.Settings(hidden=(128, 128), n_step=3, epsilon_end=0.02, epsilon_frames=15_000),
        ),
        env="Acrobot-v1",
        num_frames=100_000,
        log_every=1_000,
        eval_every=10_000,
        checkpoint_every=25_000,
    ),
)

MOUNTAIN_CAR = (
    # The goal is some hundred steps away and pays once: long returns carry it back.
    ControlConfig(
        DQN(
            memory=Memory(num_steps=16, num_updates=64, batch_size=128, lr_end=1e-4),
            settings=dqn.Settings(
                lr=6e-3, hidden=(128, 128), n_step=10, target_every=500, epsilon_frames=10_000
            ),
        ),
        env="MountainCar-v0",
        num_frames=120_000,
    ),
)

PENDULUM_MEMORY = Memory(capacity=20_000, first_frames=500, num_steps=1, num_updates=1, batch_size=256)

PENDULUM = tuple(
    ControlConfig[Any](
        learning,
        env="Pendulum-v1",
        num_envs=1,
        num_frames=20_000,
        log_every=1_000,
        eval_every=5_000,
        checkpoint_every=10_000,
    )
    for learning in (
        DDPG(memory=PENDULUM_MEMORY, settings=ddpg.Settings(hidden=(64, 64), gamma=0.98)),
        TD3(memory=PENDULUM_MEMORY, settings=td3.Settings(lr=1e-3, hidden=(64, 64), gamma=0.98)),
        SAC(memory=PENDULUM_MEMORY, settings=sac.Settings(lr=1e-3, hidden=(64, 64))),
    )
)

LUNAR_LANDER = (
    # Chance goes on for long, else it hovers and never finds that resting on the ground pays.
    ControlConfig(
        DQN(
            memory=Memory(num_steps=2, num_updates=16, lr_end=0.0),
            settings=dqn.Settings(
                hidden=(256, 128),
                n_step=3,
                alpha=0.6,
                target_every=200,
                epsilon_end=0.01,
                epsilon_frames=100_000,
            ),
        ),
        env="LunarLander-v3",
        num_frames=300_000,
        log_every=5_000,
        eval_every=50_000,
        checkpoint_every=100_000,
    ),
    ControlConfig(
        PPO(
            num_steps=512,
            network=Network(normalize_rewards=True),
            settings=ppo.Settings(gamma=0.999, lam=0.98, num_epochs=5, num_minibatches=16, entropy_coef=0.01),
        ),
        env="LunarLander-v3",
        num_envs=16,
        num_frames=1_000_000,
        log_every=10_000,
        eval_every=100_000,
        checkpoint_every=250_000,
    ),
)

TUNED: tuple[ControlConfig[Any], ...] = (
    *CARTPOLE,
    *TABLES,
    *ACROBOT,
    *MOUNTAIN_CAR,
    *PENDULUM,
    *LUNAR_LANDER,
)
"""A config for each pair; what it does not name is a default."""
