"""A3C's workers: processes that share weights and learn at once, each in environments of its own.

The main process asks and waits. In a round every worker goes on until it has lived its share of the frames;
within a round nobody waits for anybody. Between rounds all are idle, so weights can be measured and saved.

A worker is an on-policy agent whose copy of the weights comes from shared memory and whose steps go there.
Observations and rewards are normalised by what all workers see. With one worker a run is the run of A2C, to
the bit, and so is one that goes on from a checkpoint. With several it goes on from the same weights, moments,
environments and random numbers, but the order in which workers reach the shared weights is new each time.
"""

import pickle
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gradhat.algorithms import a2c, a3c
from gradhat.envs.gym import World
from gradhat.errors import ConfigError, GradhatError, RunError
from gradhat.policies.mlp import ActorCritic, MLPPolicy
from gradhat.rollouts.normalize import PooledMoments, RunningMoments, pooled
from gradhat.rollouts.vector import Collector, Episode
from gradhat.training.control import on_policy, worlds
from gradhat.training.control.agent import Agent, Choice, Means, drawing, joined, num_bytes, part
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.on_policy import Network, OnPolicyAgent
from gradhat.training.optim import SmallAdam
from gradhat.training.seed import derive
from gradhat.trajectories import Trajectories

START = "forkserver" if sys.platform == "linux" else "spawn"
"""A process forked from this one would inherit its locks and threads. A server that has imported this file
once starts each worker in milliseconds; a spawned one imports it itself, in seconds."""
PRELOAD = [__name__, "torch._dynamo"]
"""What the server imports. torch's optimisers import the second when the first of them is made."""
PATIENCE = 5.0
"""Seconds that a process may take to end."""


@dataclass(frozen=True)
class A3C:
    """A3C: the steps of A2C, by several workers at once."""

    name: ClassVar[str] = "a3c"
    num_workers: int = 2
    """Processes. Each steps num_envs / num_workers of the environments."""
    num_steps: int = 16
    """Steps of every environment in a batch."""
    network: Network = field(default_factory=Network)
    settings: a2c.Settings = field(default_factory=a2c.Settings)


Config = ControlConfig[A3C]


class Round(NamedTuple):
    """What a worker answers when it has lived its share."""

    metrics: dict[str, float]
    episodes: list[Episode]
    num_frames: int


class Seen(NamedTuple):
    """What normalises, in shared memory: for each of `W` workers the moments of what it saw itself.

    See `PooledMoments`. Rewards of one size are what one critic can learn from, and one policy reads
    observations through one map.
    """

    observations: Tensor
    """float64 `[W, 3, O]`."""
    returns: Tensor
    """float64 `[W, 3]`: of the discounted returns, by whose deviation rewards are divided."""


def nothing_seen(num_workers: int, num_inputs: int) -> Seen:
    """Return empty places."""
    shapes = (num_workers, 3, num_inputs), (num_workers, 3)
    return Seen(*(torch.zeros(shape, dtype=torch.float64).share_memory_() for shape in shapes))


def make(config: Config, world: World) -> Agent:
    """Return an A3C agent for environments like those of `world`, which is closed: workers make their own.

    ConfigError where the environments cannot be shared out.
    """
    num_workers = config.learning.num_workers
    if num_workers < 1 or config.num_envs % num_workers:
        raise ConfigError(
            f"num_workers={num_workers} of a3c: found num_envs={config.num_envs}, which cannot be shared out "
            "equally. Use a num_envs that is a multiple of num_workers."
        )
    if config.vectorization == "async":
        raise ConfigError(
            "vectorization='async' of a3c: found that its workers are processes already. "
            "Use 'sync', and more workers."
        )
    agent = Hogwild(config, world)
    world.close()
    return agent


class Hogwild:
    """The main process's side: shared weights, and the workers that move them. They start when first needed.

    RunError where a worker dies. What an environment raises in a worker is raised here. After either, and
    after an interrupt, no worker is left.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config = config
        num_workers = config.learning.num_workers
        self.module = on_policy.actor_critic(world, config.learning.network, critic=True, seed=config.seed)
        self.policy = MLPPolicy(self.module)
        self.shared = a3c.share(self.module, num_workers)
        self.seen = nothing_seen(num_workers, world.num_inputs)
        self.num_frames = 0
        self.workers: list[Process] = []
        self._finished: list[Episode] = []
        self._saved: list[dict[str, Tensor]] = [{} for _ in range(num_workers)]

    def advance(self, num_frames: int) -> dict[str, float]:
        rounds: list[Round] = self._ask(_share(num_frames, self.config))
        means = Means()
        for found in rounds:
            means.add(found.metrics)
            self._finished += found.episodes
        self.num_frames = sum(found.num_frames for found in rounds)
        return means.take()

    def greedy(self) -> Choice:
        self.module.load_state_dict(self._weights())
        return on_policy.normalised(self.policy.greedy, self._moments())

    def sampled(self, generator: torch.Generator) -> Choice:
        self.module.load_state_dict(self._weights())
        return on_policy.normalised(drawing(self.policy, generator), self._moments())

    def holds(self) -> str:
        return ""

    def drain(self) -> list[Episode]:
        finished, self._finished = self._finished, []
        return finished

    def state(self) -> dict[str, Tensor]:
        found: list[dict[str, Tensor]] = self._ask("state")
        return joined(
            seen={name: places.clone() for name, places in self.seen._asdict().items()},
            **{f"worker{i}": tensors for i, tensors in enumerate(found)},
        ) | {
            "num_frames": torch.tensor(self.num_frames),
            **{name: tensor.clone() for name, tensor in self._tensors().items()},
        }

    def saved_bytes(self) -> int:
        return num_bytes(self._tensors().values())

    def restore(self, state: dict[str, Tensor]) -> None:
        saved, mine = len(state["versions"]), len(self.shared.versions)
        if saved != mine:
            raise RunError(
                f"go on with {mine} workers: found a checkpoint of {saved}. Use num_workers={saved}."
            )
        self.close()
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.num_frames = int(state["num_frames"])
        for name, places in part(state, "seen").items():
            getattr(self.seen, name).copy_(places)
        self._saved = [part(state, f"worker{i}") for i in range(mine)]

    def restore_policy(self, state: dict[str, Tensor]) -> None:
        for name, tensor in joined(weights=self._weights()).items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name} is {list(state[name].shape)}, wanted {list(tensor.shape)}")
            tensor.copy_(state[name])
        # Whatever the number of workers was: what they saw is pooled.
        self.seen = Seen(**part(state, "seen"))

    def close(self) -> None:
        while self.workers:
            self.workers.pop().end(PATIENCE)

    def _moments(self) -> RunningMoments | None:
        """Return the moments of all that was seen, or None where nothing is normalised, or seen yet."""
        return pooled(self.seen.observations) if self.seen.observations.any() else None

    def _weights(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.module.named_parameters()]
        parameters = a3c.weights(self.shared, self.module)
        return {name: p.detach() for name, p in zip(names, parameters, strict=True)}

    def _tensors(self) -> dict[str, Tensor]:
        """Return the shared memory by the names that A2C's state has."""
        statistics = enumerate(a3c.statistics(self.shared, self.module))
        optimizer = {f"{key}.{i}": tensor for i, found in statistics for key, tensor in found.items()}
        return joined(weights=self._weights(), optimizer=optimizer) | {"versions": self.shared.versions}

    def _ask(self, message: int | str) -> list[Any]:
        """Return the answers of all workers, in their order. An error leaves no worker behind."""
        try:
            if not self.workers:
                self._start()
            for worker in self.workers:
                worker.send(message)
            answers: dict[int, Any] = {}
            waiting = {worker.connection: worker for worker in self.workers}
            while waiting:
                for ready in connection.wait(list(waiting)):
                    worker = waiting.pop(ready)  # pyright: ignore[reportArgumentType]
                    answers[worker.number] = worker.answer()
        except BaseException:
            while self.workers:
                self.workers.pop().end(0.0)
            raise
        return [answers[number] for number in sorted(answers)]

    def _start(self) -> None:
        for number, saved in enumerate(self._saved):
            self.workers.append(Process(self.config, number, self.shared, self.seen))
            self.workers[-1].send(saved)


class Process:
    """A worker as the main process sees it."""

    def __init__(self, config: Config, number: int, shared: a3c.Shared, seen: Seen) -> None:
        context = get_context(START)
        context.set_forkserver_preload(PRELOAD)
        self.number = number
        self.connection, theirs = context.Pipe()
        # A daemon: it ends with the main process, however that ends.
        self.process = context.Process(target=work, args=(config, number, shared, seen, theirs), daemon=True)
        self.process.start()
        self.pid = self.process.pid
        # The worker alone holds its end, so its death is the end of the conversation.
        theirs.close()

    def send(self, message: object) -> None:
        """Say something. Whether the worker lives, and what else it had to say, `answer` tells."""
        with suppress(BrokenPipeError, ConnectionResetError):
            _send(self.connection, message)

    def answer(self) -> Any:
        """Return what the worker answers, or raise it if it is an error. RunError when the worker is dead."""
        try:
            found = _receive(self.connection)
        except (EOFError, ConnectionResetError) as error:
            raise RunError(self._obituary()) from error
        if isinstance(found, GradhatError):
            raise found
        return found

    def end(self, patience: float) -> None:
        """Let the process end by itself within so many seconds, or end it."""
        self.send(None)
        self.connection.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        self.process.close()

    def _obituary(self) -> str:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        cause = f" ({signal.Signals(-code).name})" if code is not None and code < 0 else ""
        return (
            f"a round of a3c: found worker {self.number}, process {self.pid}, dead with exit code "
            f"{code}{cause}. SIGKILL is often a lack of memory: use fewer workers. Any other: see what the "
            "worker printed. Then go on from the last checkpoint."
        )


def work(config: Config, number: int, shared: a3c.Shared, seen: Seen, main: Connection) -> None:
    """Be a worker until the main process has nothing more to ask, or is gone.

    Ctrl-C is left to the main process. Errors that a user can fix are answers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(config.num_threads)
    with main, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            _serve(worker(config, number, shared, seen), main)
        except GradhatError as error:
            _send(main, error)


def _serve(agent: OnPolicyAgent, main: Connection) -> None:
    try:
        if saved := _receive(main):
            agent.collector.restore(part(saved, "collector"))
            agent.generator.set_state(saved["generator"])
        while (asked := _receive(main)) is not None:
            _send(main, _state(agent) if asked == "state" else _round(agent, asked))
    finally:
        agent.close()


def worker(config: Config, number: int, shared: a3c.Shared, seen: Seen) -> OnPolicyAgent:
    """Return the agent of worker `number`: A2C's, but for where its weights come from and its steps go.

    Before each batch it looks at the weights, and at what the others have seen.
    """
    learning, num_workers = config.learning, config.learning.num_workers

    def gather(agent: OnPolicyAgent) -> Trajectories:
        version = mine.copy()
        for moments in looks:
            moments.look()
        return agent.collector.collect(agent.policy, learning.num_steps, agent.generator, version)

    def learn(agent: OnPolicyAgent, batch: Trajectories) -> dict[str, float]:
        return a3c.update(agent.policy, mine, batch, learning.settings)

    agent = OnPolicyAgent(
        worlds.make(config, config.num_envs // num_workers),
        network=learning.network,
        gather=gather,
        learn=learn,
        gamma=learning.settings.gamma,
        critic=True,
        # A lone worker draws what A2C draws.
        seed=config.seed if num_workers == 1 else derive(config.seed, "worker", number),
        last_frame=_share(config.num_frames, config),
    )
    looks = _pool(agent.collector, seen, number)
    agent.optimizer = _optimizer(agent.module, shared, learning.network)
    mine = a3c.Worker(agent.module, agent.optimizer.parameters, agent.optimizer, shared.versions, number)
    return agent


def _pool(collector: Collector, seen: Seen, number: int) -> list[PooledMoments]:
    """Let a collector normalise by what all workers see, where it normalises; return what looks at them."""
    looks: list[PooledMoments] = []
    if collector.moments is not None:
        looks.append(PooledMoments(seen.observations, number, collector.moments))
        collector.moments = looks[-1]
    if (scale := collector.reward_scale) is not None:
        looks.append(PooledMoments(seen.returns, number, scale.moments))
        scale.moments = looks[-1]
    return looks


def _optimizer(module: ActorCritic, shared: a3c.Shared, network: Network) -> SmallAdam:
    """Return the optimiser of A2C, over shared weights and with shared moments."""
    parameters = a3c.weights(shared, module)
    optimizer = SmallAdam(parameters, lr=network.lr, max_grad_norm=network.max_grad_norm)
    optimizer.optimizer.state.update(zip(parameters, a3c.statistics(shared, module), strict=True))
    return optimizer


def _round(agent: OnPolicyAgent, num_frames: int) -> Round:
    metrics = agent.advance(num_frames)
    return Round(metrics, agent.drain(), agent.num_frames)


def _state(agent: OnPolicyAgent) -> dict[str, Tensor]:
    return joined(collector=agent.collector.state()) | {"generator": agent.generator.get_state()}


def _share(num_frames: int, config: Config) -> int:
    """Return how many of so many frames each worker lives."""
    return -(-num_frames // config.learning.num_workers)


def _send(end: Connection, message: object) -> None:
    # Connection.send would move tensors into shared memory, which dies with the process that made it.
    end.send_bytes(pickle.dumps(message))


def _receive(end: Connection) -> Any:
    return pickle.loads(end.recv_bytes())
