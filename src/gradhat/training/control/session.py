"""A control run in memory: a world, an agent in it, and where they stand."""

import math
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gradhat.envs.gym import World
from gradhat.errors import ConfigError, GradhatError, RunError
from gradhat.intervals import FEWEST, Seen, mean_interval
from gradhat.rollouts.vector import Episode
from gradhat.training import checkpoint
from gradhat.training.checkpoint import Checkpoint, fitting
from gradhat.training.clock import Clock
from gradhat.training.control import evaluate, worlds
from gradhat.training.control.agent import Agent, Choice
from gradhat.training.control.algorithms import ALGORITHMS, check_actions, read
from gradhat.training.control.config import ControlConfig, check, to_json
from gradhat.training.control.evaluate import Measured
from gradhat.training.control.progress import in_training, progress_line, returned
from gradhat.training.log import Log
from gradhat.training.loop import Ending
from gradhat.training.memory import keep_freed_memory
from gradhat.training.run_folder import RunFolder
from gradhat.training.seed import derive
from gradhat.training.trust import allow, code_in

STATE = "state.safetensors"
WEIGHTS = ("weights/", "algorithm/", "q")
"""How the names begin of what a policy is made of, in the states of all agents."""


class Session:
    """See `training.loop.Session`."""

    longer = "--num-frames"
    rounding = ()

    def __init__(
        self, config: ControlConfig[Any], world: World, agent: Agent, judge: World | None = None
    ) -> None:
        self.config, self.world, self.agent, self._judge = config, world, agent, judge
        self.measured: Measured = measured(config, world)
        """Which policy is measured."""
        self.step = 0
        self.line: dict[str, float] = {}
        self.seen = Seen()
        """The returns so far, in training and in measurements."""
        self._seen_before = Seen()
        self._planned = config.num_frames
        """The last frame that the schedules went to before the run was made longer."""
        self._frames_before = 0
        self._diverged = ""
        self._whole = 0
        """The last step that `_state` is of."""
        self._state: dict[str, Tensor] = {}
        """All that going on needs, as it was after that step: a world that raised cannot be saved."""

    @property
    def num_steps(self) -> int:
        """The number of the last line of metrics: one for every `log_every` frames, those within a batch
        passed over."""
        if self.agent.num_frames >= self.config.num_frames:
            return self.step
        # A line that was the last one, and short, is followed by another where the run is made longer.
        return max(self._num_lines(), self.step + 1)

    def _num_lines(self) -> int:
        return math.ceil(self.config.num_frames / self.config.log_every)

    def sources(self) -> dict[str, str]:
        """Return which package the environment is of, or a hash of the module that it is in."""
        return worlds.sources(self.config)

    def opening(self) -> str:
        """Return what is learned, and how."""
        config = self.config
        lines = [
            f"env    {config.env}: {self.world.spaces}; {config.num_envs} at once",
            f"agent  {config.algorithm}: {ALGORITHMS[config.algorithm].what}",
            self.agent.holds(),
            self._judged_by(),
            f"longer by {config.num_frames - self._planned:,} frames: a learning rate or beta that changes "
            f"until the last frame went to frame {self._planned:,} and now stands where a run of "
            f"{config.num_frames:,} frames has it"
            if config.num_frames > self._planned
            else "",
        ]
        return "\n".join(line for line in lines if line)

    def _judged_by(self) -> str:
        """Return a line about what the run is judged by, where that is not its greedy policy."""
        if not self.config.eval_episodes:
            return "judged by its returns in training: --eval-episodes 0 measures nothing"
        drawn = "judged by its sampled policy, with actions drawn as in training"
        return drawn if self.measured == "sampled" else ""

    def progress(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> str:
        """Return the line of progress."""
        return progress_line(
            metrics, seconds_left, scale=self.seen.scale(), eval_episodes=self.config.eval_episodes
        )

    def before(self, run: RunFolder) -> dict[str, float]:
        """Measure the untrained policy."""
        return self._measure() if self.config.eval_every and self.config.eval_episodes else {}

    def advance(self, run: RunFolder, log: Log) -> dict[str, float]:
        """Live and learn until the next line of metrics is due."""
        config = self.config
        clock, before = Clock(), self.agent.num_frames
        self._frames_before, self._seen_before = before, replace(self.seen)
        self.step += 1
        values = self.agent.advance(
            min((before // config.log_every + 1) * config.log_every, config.num_frames)
        )
        clock.lap("train")
        frames = self.agent.num_frames
        # A batch can be longer than a line: the lines within it are passed over.
        passed = frames // config.log_every if frames < config.num_frames else self._num_lines()
        self.step = max(self.step, passed)
        self._diverged = diverged(values)
        if not self._diverged:
            self._state, self._whole, self.line = self.agent.state(), self.step, values
        values |= {"num_frames": float(frames), **_episodes(self.agent.drain(), self.seen)}
        values["frames_per_second"] = (frames - before) / clock.parts()["time/train"]
        if config.eval_episodes and (self._due(config.eval_every) or self.step == self.num_steps):
            clock.lap("rest")
            values |= self._measure()
            clock.lap("evaluate")
        return values | clock.parts()

    def check(self, run: RunFolder) -> None:
        """RunError where nothing more can be learned: values that are not finite, or no update that is."""
        if self._diverged:
            raise RunError(
                f"step {self.step} of {run.path}: {self._diverged}. Lower --lr in a new run. "
                f"The checkpoints in {run.checkpoints} are whole."
            )

    def save_due(self) -> bool:
        """Return whether a checkpoint belongs after the present step."""
        return self._due(self.config.checkpoint_every) or self.step == self.num_steps

    def save(self, run: RunFolder) -> Path:
        """Write a checkpoint of the present step."""

        def write(path: Path) -> None:
            checkpoint.save_tensors(self._state, path / STATE)

        return checkpoint.save(
            run.checkpoints, self.step, write, self._cursor(), keep=self.config.keep_checkpoints
        )

    def checkpoint_sizes(self) -> list[int]:
        """Return how many bytes each checkpoint takes that the run leaves, the newest first."""
        config = self.config
        written = math.ceil(config.num_frames / config.checkpoint_every)
        return [self.agent.saved_bytes()] * min(config.keep_checkpoints, written)

    def _cursor(self) -> dict[str, Any]:
        return {"seen": asdict(self.seen), "num_frames": self.config.num_frames}

    def resume(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was taken."""
        self.step = self._whole = found.step
        with fitting(found):
            checkpoint.check_alike(found.cursor, self._cursor())
            self.seen = Seen(**found.cursor["seen"])
            self._planned = found.cursor["num_frames"]
            self._state = _read(found)
            self.agent.restore(self._state)

    def retreat(self) -> bool:
        """Count back to the last whole step. The agent itself is of no more use."""
        if self.step != self._whole:
            self.step, self.seen = self._whole, self._seen_before
        return True

    def finish(self, run: RunFolder) -> Ending:
        """Say what the last line of metrics has measured. Where an error left that line out, measure."""
        if not self.config.eval_episodes:
            return self._unmeasured(run)
        lines = run.read_metrics()
        last = lines[-1] if lines else {}
        measured: dict[str, float] = {}
        if last.get("step") != self.step or f"{self.measured}/return" not in last:
            last = measured = {"num_frames": float(self.agent.num_frames), **self._measure()}
        after = {key: value for key, value in last.items() if key.startswith(f"{self.measured}/")}
        closing = (
            f"done. {self.config.eval_episodes} {self.measured} episodes: return "
            f"{returned(last, self.config.eval_episodes, self.seen.scale())}\n"
            f"{self._look(run)}"
        )
        summary = {"num_frames": self.agent.num_frames, "episodes": self.config.eval_episodes, "after": after}
        return Ending(measured, summary, closing)

    def _unmeasured(self, run: RunFolder) -> Ending:
        """Say what the last line of metrics has of training."""
        lines = (line for line in reversed(run.read_metrics()) if "episode/return" in line)
        last = next(lines, dict[str, Any]())
        episodes = int(last.get("num_episodes", 0))
        said = (
            f"nothing was measured. The last {episodes} training episodes: return "
            f"{in_training(last, self.seen.scale())}"
            if episodes
            else "nothing was measured, and no training episode came to its end"
        )
        after = {key: value for key, value in last.items() if key.startswith("episode/")}
        summary = {"num_frames": self.agent.num_frames, "episodes": episodes, "after": after}
        return Ending({}, summary, f"done. {said}\n{self._look(run)}")

    def _look(self, run: RunFolder) -> str:
        """Return how to look at the run: a world of the zoo draws no pictures."""
        is_drawn = not self.config.env.startswith(worlds.ZOO_PREFIX)
        return f"watch it: gradhat watch {run.path}" if is_drawn else f"measure it: gradhat eval {run.path}"

    def close(self) -> None:
        """Free the environments."""
        self.agent.close()
        if self._judge is not None:
            self._judge.close()

    @property
    def judge(self) -> World:
        """The environments of measurements, made at the first of them: some worlds cannot be had twice."""
        if self._judge is None:
            self._judge = judge(self.config)
        return self._judge

    def _due(self, every: int) -> bool:
        """Return whether a multiple of `every` frames lies in the present step."""
        return every > 0 and self.agent.num_frames // every > self._frames_before // every

    def play(self, seed: int) -> evaluate.Played:
        """Play the episodes of a measurement with the present policy."""
        config = self.config
        return evaluate.play(
            self.judge, self.policy(seed), config.eval_episodes, seed, max_steps=config.eval_max_steps
        )

    def policy(self, seed: int) -> Choice:
        """Return the present policy as it is measured. Where it draws, it does so from `seed`."""
        if self.measured == "greedy":
            return self.agent.greedy()
        return self.agent.sampled(torch.Generator().manual_seed(derive(seed, "actions")))

    def _measure(self) -> dict[str, float]:
        played = self.play(derive(self.config.seed, "greedy", self.step))
        return evaluate.summary(played, self.measured, self.seen)


def placed(verb: str, config: ControlConfig[Any], env: str, *, trusted: bool) -> ControlConfig[Any]:
    """Return the config of a run that somebody wants to look at, in `env` where that is named.

    ConfigError where what is left of its own names code that nobody trusts.
    """
    allow(verb, to_json(config), ["env_args"] if env else ["env", "env_args"], "--env", trusted=trusted)
    return replace(config, env=env or config.env)


@contextmanager
def playing(run: Path, config: ControlConfig[Any]) -> Generator[Session]:
    """Yield the policy of the newest whole checkpoint in `run`, in the environments of measurements.

    Weights and normaliser are all that is read: the environments that it was trained in and its memory are
    neither made nor restored. Closes what it made. RunError where there is no whole checkpoint, or where it
    is not one of `config`, and ConfigError where that is in another environment, with other spaces.
    """
    check(config)
    torch.set_num_threads(config.num_threads)
    found, damage = checkpoint.newest(run / "checkpoints")
    if found is None:
        reason = " ".join(damage) or "found none yet."
        raise RunError(
            f"use the newest checkpoint of {run}: {reason} Train on first: gradhat train --resume {run}"
        )
    with fitting(found):
        saved = _read(found)
    still = idle(config)
    with closing(worlds.make(still, still.num_envs)) as world:
        check_actions(still, world)
        agent = ALGORITHMS[still.algorithm].make(still, world)
    try:
        with fitting(found):
            agent.restore_policy(saved)
    except RunError as error:
        own = read(run)
        if own.env == config.env:
            raise
        raise ConfigError(
            f"use the policy of {run} in {config.env}: it was trained in {own.env}{_spaces_of(own)}, but "
            f"{config.env} has {world.spaces}. Name an --env with the spaces of {own.env}."
        ) from error
    with closing(judge(config)) as world:
        session = Session(config, world, agent, world)
        session.step = found.step
        yield session


def _spaces_of(own: ControlConfig[Any]) -> str:
    """Return the spaces of a run's own environment in words, or nothing where seeing them needs code that the
    run names, or an environment that is gone."""
    if code_in(to_json(own)):
        return ""
    try:
        with closing(worlds.make(idle(own), 1)) as world:
            return f" ({world.spaces})"
    except GradhatError:
        return ""


def _read(found: Checkpoint) -> dict[str, Tensor]:
    """Return what a session saved. ValueError for types that none saves, RunError for a lost policy."""
    tensors = load_file(found.path / STATE)
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    for name, tensor in floats.items():
        if tensor.itemsize < torch.float32.itemsize:
            raise ValueError(f"{name} is {tensor.dtype}, wanted torch.float32 or wider")
        if name.startswith(WEIGHTS) and not tensor.isfinite().all():
            raise RunError(
                f"use the checkpoint {found.path}: found weights that are not finite, such as {name}. The "
                "policy has diverged: move this checkpoint away, and the one before is used."
            )
    return tensors


def idle(config: ControlConfig[Any]) -> ControlConfig[Any]:
    """Return the settings of an agent that never learns: one environment, no memory, no workers."""
    learning: Any = config.learning
    if hasattr(learning, "memory"):
        capacity = max(learning.memory.num_steps, learning.settings.n_step)
        learning = replace(learning, memory=replace(learning.memory, capacity=capacity))
    if hasattr(learning, "num_workers"):
        learning = replace(learning, num_workers=1)
    stepped = "sync" if config.vectorization == "async" else config.vectorization
    return replace(config, num_envs=1, vectorization=stepped, learning=learning)


def prepare(config: ControlConfig[Any]) -> Session:
    """Make the world and the agent of `config`. Writes nothing.

    ConfigError for an environment that is not there, and for actions that the algorithm cannot choose.
    """
    check(config)
    torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    world = worlds.make(config, config.num_envs)
    try:
        check_actions(config, world)
        return Session(config, world, ALGORITHMS[config.algorithm].make(config, world))
    except BaseException:
        world.close()
        raise


def measured(config: ControlConfig[Any], world: World) -> Measured:
    """Return which policy a run is judged by.

    Where states look alike the best policy may have to draw its actions, and its best single action be worth
    the least. A policy that leaves nothing to chance but while it explores is what it is.
    """
    if config.eval_policy != "auto":
        return config.eval_policy
    draws = ALGORITHMS[config.algorithm].draws
    return "sampled" if draws and world.partially_observed else "greedy"


def judge(config: ControlConfig[Any]) -> World:
    """Return the environments of measurements, stepped as those of training: each plays as many of the
    episodes. A process each is costly: no more of those than in training.
    """
    most = min(config.eval_envs, config.eval_episodes)
    most = min(most, config.num_envs) if config.vectorization == "async" else most
    return worlds.make(config, next(n for n in range(most, 0, -1) if config.eval_episodes % n == 0))


def diverged(values: Mapping[str, float]) -> str:
    """Return what shows that learning is over, or nothing."""
    lost = [name for name in ("q", "td_error") if not math.isfinite(values.get(name, 0.0))]
    if lost:
        return f"{lost[0]} is {values[lost[0]]}"
    return "no gradient of this line was finite" if values.get("skipped", 0.0) >= 1 else ""


def _episodes(finished: list[Episode], seen: Seen) -> dict[str, float]:
    """Return what a line says of the training episodes that ended in it."""
    if not finished:
        return {}
    returns = [episode.ret for episode in finished]
    seen.take(returns)
    interval = mean_interval(returns, *seen.bounds())
    metrics = {
        "episode/return": interval.mean,
        "episode/length": sum(episode.length for episode in finished) / len(finished),
        "num_episodes": float(len(finished)),
    }
    if len(finished) >= FEWEST:
        metrics |= {"episode/low": interval.low, "episode/high": interval.high}
    return metrics
