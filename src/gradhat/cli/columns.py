"""Flags for a file of questions: they become settings in the task's own text, which a run stores."""

from dataclasses import dataclass

from gradhat.envs.text.question_files import FORMS, is_questions
from gradhat.errors import ConfigError
from gradhat.places import home


@dataclass(frozen=True)
class Columns:
    """Of a task that is a file of questions."""

    question_column: str = ""
    """Of a file of questions: the column of the question, "question" when left out."""
    answer_column: str = ""
    """Of a file of questions: the column of the right answer, "answer" when left out."""
    key_column: str = ""
    """Of a file of questions: rows of one value in this column are held out together; left out, the text
    decides."""
    scorer: str = ""
    """Of a file of questions: last_number, exact, contains, multiple_choice or math_verify; left out, the
    answers decide."""

    def named(self, task: str) -> str:
        """Return "q.jsonl:question=prompt" for "q.jsonl" and --question-column prompt.

        ConfigError for a task that is no file of questions, and for what cannot be written in a task's text.
        """
        flags = {
            "question": self.question_column,
            "answer": self.answer_column,
            "key": self.key_column,
            "scorer": self.scorer,
        }
        given = [f"{name}={value}" for name, value in flags.items() if value]
        if not given:
            return task
        file, colon, _ = task.partition(":")
        if not is_questions(file):
            raise ConfigError(
                f"--task {task}: columns and scorers are flags of a file of questions, and this is none. "
                f"Drop them, or name {FORMS}."
            )
        if any("," in value for value in flags.values()):
            raise ConfigError(f"--task {task}: found a comma in the name of a column. Rename the column.")
        return f"{task}{',' if colon else ':'}{','.join(given)}"


def absolute(spec: str) -> str:
    """Return "/folder/my_task.py:MyTask" for "my_task.py:MyTask", and a task that is no file. ConfigError for
    links that lead nowhere."""
    name, colon, rest = spec.partition(":")
    path = home(name)
    if path.suffix != ".py" and not is_questions(name):
        return spec
    try:
        return f"{path.resolve()}{colon}{rest}"
    except (OSError, RuntimeError) as error:  # a RuntimeError is Python's word for links that go round
        raise ConfigError(
            f"{spec}: found links that lead nowhere ({error}). Name the file itself."
        ) from error
