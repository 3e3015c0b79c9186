"""A3C without processes: what its workers do is then a function of the config."""

from multiprocessing import Pipe
from typing import Any

from gradhat.training.control import hogwild


class Inline:
    """A worker of A3C in this process: what it is asked it does at once, so that runs can be compared."""

    def __init__(self, config: Any, number: int, shared: Any, seen: Any) -> None:
        self.number = number
        self.agent = hogwild.worker(config, number, shared, seen)
        self.connection, self.theirs = Pipe()
        self.begun = False

    def send(self, message: Any) -> None:
        if self.begun:
            asked = hogwild._state if message == "state" else hogwild._round  # pyright: ignore
            self.found = asked(self.agent, *([] if message == "state" else [message]))
            self.theirs.send(None)
        self.begun = True

    def answer(self) -> Any:
        self.connection.recv()
        return self.found

    def end(self, patience: float) -> None:
        self.agent.close()
        self.connection.close()
        self.theirs.close()
