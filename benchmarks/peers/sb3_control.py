"""Stable-Baselines3 on CartPole-v1 with the RL Zoo's hyper-parameters. Prints one JSON line."""

import argparse
import json
import time

import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("algorithm", choices=["ppo", "a2c", "dqn"])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.set_num_threads(args.threads)


def linear(start):
    return lambda left: left * start


if args.algorithm == "ppo":
    steps, model = (
        100_000,
        PPO(
            "MlpPolicy",
            make_vec_env("CartPole-v1", n_envs=8),
            n_steps=32,
            batch_size=256,
            gae_lambda=0.8,
            gamma=0.98,
            n_epochs=20,
            ent_coef=0.0,
            learning_rate=linear(1e-3),
            clip_range=linear(0.2),
            seed=args.seed,
        ),
    )
elif args.algorithm == "a2c":
    steps, model = (
        200_000,
        A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8), ent_coef=0.0, seed=args.seed),
    )
else:
    steps, model = (
        50_000,
        DQN(
            "MlpPolicy",
            make_vec_env("CartPole-v1", n_envs=1),
            learning_rate=2.3e-3,
            batch_size=64,
            buffer_size=100_000,
            learning_starts=1000,
            gamma=0.99,
            target_update_interval=10,
            train_freq=256,
            gradient_steps=128,
            exploration_fraction=0.16,
            exploration_final_eps=0.04,
            policy_kwargs={"net_arch": [256, 256]},
            seed=args.seed,
        ),
    )
start = time.perf_counter()
model.learn(steps)
seconds = time.perf_counter() - start
mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=8, seed=123), n_eval_episodes=100)
print(
    json.dumps(
        {
            "peer": "sb3",
            "algorithm": args.algorithm,
            "steps": steps,
            "seconds": round(seconds, 1),
            "steps_per_second": round(steps / seconds),
            "greedy_return": float(mean),
            "std": float(std),
        }
    )
)
