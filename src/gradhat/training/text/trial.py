"""What is known of a run before its weights are in memory: its task, tried out, and the shape of its model.

`gradhat train --dry-run` ends here; a run goes on to session.py.
"""

from pathlib import Path
from typing import NamedTuple

from gradhat.envs.text.load import load_task
from gradhat.envs.text.rewards import load_rewards
from gradhat.envs.text.task import Checked, Question, Task, check, held_out_set
from gradhat.errors import TaskError
from gradhat.policies.language import weights
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.transformer import Transformer
from gradhat.training.seed import derive
from gradhat.training.text.config import TrainConfig
from gradhat.training.text.evaluate import fitting
from gradhat.training.text.model import compute_dtype, folder_of


class Tried(NamedTuple):
    """A task that was asked and that judged."""

    levels: list[Task]
    """Of the curriculum; the task itself is the last."""
    checked: Checked
    """What its own answers and the empty completion score."""
    held_out: list[Question]
    """Up to `final_questions`."""
    num_left_out: int = 0
    """Held-out questions that do not fit into the model's context."""

    def fitting(self, config: TrainConfig, chat: Chat, network: Transformer) -> "Tried":
        """Return the same with the questions that fit into the network's context. TaskError if none does."""
        fit = fitting(
            self.held_out,
            chat,
            system=config.system,
            max_new_tokens=config.max_new_tokens,
            context=network.config.max_positions,
        )
        return self._replace(held_out=fit, num_left_out=len(self.held_out) - len(fit))

    def lines(self, config: TrainConfig) -> str:
        """Return in words what was found."""
        left_out = (
            f", {self.num_left_out} more left out: too long for the context" if self.num_left_out else ""
        )
        held_out = f"task   {config.task}: {len(self.held_out)} questions held out{left_out}"
        return f"{held_out}\ncheck  {self.checked}"


def levels(config: TrainConfig) -> list[Task]:
    """Load the tasks of `config`, the task itself last, with its rewards. TaskError for what is none."""
    return [load_rewards(load_task(spec), config.reward) for spec in (*config.curriculum, config.task)]


def tried(config: TrainConfig) -> Tried:
    """Load the tasks of `config`, try them, and draw the held-out questions. TaskError for what is wrong."""
    tasks = levels(config)
    checked = [check(task, say=_say, answers=not config.reward) for task in tasks][-1]
    held_out = held_out_set(tasks[-1], config.final_questions, derive(config.seed, "held_out"), _say)
    if not held_out:
        raise TaskError(
            f"{config.task}: held-out questions were asked for; found none among those it draws. "
            f"Give the task more distinct questions: a fifth of them is held out."
        )
    return Tried(tasks, checked, held_out)


def described(config: TrainConfig, network: Transformer) -> str:
    """Return the line that says which network is trained."""
    size = sum(p.numel() for p in network.parameters())
    dtype = str(compute_dtype(config.dtype)).removeprefix("torch.")
    return f"model  {config.model}: {size / 1e6:.0f}M parameters in {dtype}"


def rehearse(config: TrainConfig, run: Path | None = None) -> str:
    """Do of a run of `config`, or of going on with `run`, what needs no weights, and return what was found.

    Errors are those of the run. Nothing is written, fetched or converted: a model that a run would fetch is
    not looked at.
    """
    found = tried(config)
    folder, _ = folder_of(config, run, weights.at_hand)
    if folder is None:
        awaited = f"model  {config.model}: not ready on this machine, a run fetches or converts it"
        return f"{awaited}\n{found.lines(config)}"
    chat, network = Chat.read(folder, config.template_args), weights.outline(folder)
    return f"{described(config, network)}\n{found.fitting(config, chat, network).lines(config)}"


def _say(line: str) -> None:
    print(line, flush=True)
