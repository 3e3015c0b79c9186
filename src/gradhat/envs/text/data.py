"""A file of questions as a task: JSON lines, CSV, Parquet, or a folder that `datasets` saved.

    questions.jsonl
    questions.csv:question=prompt,answer=target,key=topic,scorer=exact

A row is a question. Two columns are read, `question` and `answer` unless others are named, and a third for
the split where `key` names one; all of them reach reward functions. Nothing in such a file is executed.
"""

import csv
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from gradhat.envs.text.guard import Named
from gradhat.envs.text.question_files import FORMS, SPLITS, STATE
from gradhat.envs.text.scorers import Scorer, check_name, scorer
from gradhat.envs.text.task import Question
from gradhat.envs.text.verify import shorten
from gradhat.errors import TaskError
from gradhat.places import is_file, is_folder
from gradhat.trajectories import Verdict

Row = dict[str, Any]
LONGEST_FIELD = 2**31 - 1
"""A column that nobody asks for may hold whole documents; the csv module stops at 128 KiB."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a file of questions are read, and how an answer is scored."""

    question: str = "question"
    """Column of the question: text, or a list of one message of a user."""
    answer: str = "answer"
    """Column of the right answer. Reward functions need none."""
    key: str = ""
    """Column whose value decides whether a row is held out; rows of one value stay together. "" takes the
    question's text."""
    scorer: str = "auto"
    """How a completion is scored: last_number, exact, contains, multiple_choice or math_verify. auto chooses
    among the first, the second and the fourth by what the answers are."""


class FileTask(Named):
    """The rows of a file as questions: number `seed % len(rows)` for a seed."""

    solved = 1.0

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = path
        self.title = f"task {path}"
        self.columns = columns
        self.rows = read_rows(path)
        self._check()
        self.answers = [_written(row.get(columns.answer)) for row in self.rows]
        check_name(columns.scorer, str(path))
        self._scorer: Scorer | None = None

    def question(self, seed: int) -> Question:
        """Return the question of one row, its columns as `entry`."""
        number = seed % len(self.rows)
        row, columns = self.rows[number], self.columns
        key = _written(row[columns.key]) if columns.key else ""
        return Question(text_of(row[columns.question]), self.answers[number], row, key)

    def score(self, question: Question, completion: str) -> Verdict:
        """Return what the scorer says. TaskError for a file without answers, or with some that no scorer
        could find: functions alone can score these."""
        if self._scorer is None:
            self._check_answers()
            self._scorer = scorer(self.columns.scorer, self.answers, str(self.path))
        return self._scorer(completion, question.answer)

    def _check_answers(self) -> None:
        name, without = (
            self.columns.answer,
            [n for n, answer in enumerate(self.answers, 1) if not answer.strip()],
        )
        if not any(name in row for row in self.rows):
            raise TaskError(
                f"{self.path}: a score was asked for; found no column {name!r} with the right "
                f"answers, only {_listed(self.rows[0])}. Name it with --answer-column, or score with "
                "--reward my_rewards.py:function."
            )
        if without:
            raise TaskError(
                f"{self.path}: row {without[0]} has no answer in the column {name!r}. Fill it in, drop the "
                "row, or score with --reward my_rewards.py:function."
            )

    def _check(self) -> None:
        """TaskError for a column that is not there, and for a row without a question."""
        columns, found = self.columns, self.rows[0]
        wanted = (
            {"question": columns.question, "key": columns.key}
            if columns.key
            else {"question": columns.question}
        )
        if columns.answer != Columns.answer:
            wanted["answer"] = columns.answer
        for flag, name in wanted.items():
            if name not in found:
                raise TaskError(
                    f"{self.path}: the column {name!r} was asked for; found {_listed(found)}. "
                    f"Name one of them: --{flag}-column NAME."
                )
        for number, row in enumerate(self.rows, 1):
            missing = [name for name in wanted.values() if row.get(name) is None]
            if missing:
                raise TaskError(
                    f"{self.path}: row {number} has no {missing[0]!r}. Fill it in or drop the row."
                )
            if not text_of(row[columns.question]).strip():
                found_there = shorten(repr(row[columns.question]))
                raise TaskError(
                    f"{self.path}: row {number}: {columns.question!r} is {found_there}. "
                    'Write text, or one message: [{"role": "user", "content": "..."}].'
                )


def open_data(path: Path, settings: Mapping[str, str]) -> FileTask:
    """Return the task of a file of questions under `settings`, the fields of `Columns`."""
    known = [field.name for field in fields(Columns)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise TaskError(f"{path} has no setting {unknown[0]!r}. Known: {', '.join(known)}.")
    return FileTask(path, Columns(**settings))


def text_of(question: Any) -> str:
    """Return the text of a question column, "" for what is none: the user's message where it is a list of
    messages."""
    if isinstance(question, list):
        messages = cast(list[Any], question)
        said = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
        return text_of(said[0].get("content")) if len(said) == len(messages) == 1 else ""
    return question if isinstance(question, str) else ""


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of questions. TaskError says which line of which file cannot be read."""
    try:
        rows = list(_rows(path))
    except TaskError:
        raise
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is no text in UTF-8: {shorten(str(error), 200)}. Save it as UTF-8."
        ) from error
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise TaskError(f"{path} cannot be read: {shorten(str(error), 200)}. Give {FORMS}.") from error
    if not rows:
        raise TaskError(f"{path} holds no question. Write one a row.")
    return rows


def _rows(path: Path) -> Iterator[Row]:
    if is_folder(path):
        return _arrow(path)
    # A pipe or a device may never end.
    if not is_file(path):
        raise TaskError(f"{path}: there is no such file. Check the path; a file of questions is {FORMS}.")
    match path.suffix.lower():
        case ".jsonl":
            return _json_lines(path)
        case ".csv":
            return _csv(path)
        case _:
            return _parquet(path)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{path}: line {number} is no JSON: {shorten(str(error))}.") from error
            if not isinstance(row, dict):
                raise TaskError(
                    f'{path}: line {number} is {shorten(line)}. Write an object a line: {{"question": "...", '
                    '"answer": "..."}.'
                )
            yield row


def _csv(path: Path) -> Iterator[Row]:
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            # Spreadsheets leave empty columns without a name.
            names = [name for name in reader.fieldnames or [] if name]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise TaskError(f"{path}: the first line names the column {twice!r} twice. Rename one.")
            for row in reader:
                if None in row or None in row.values():
                    raise TaskError(
                        f"{path}: line {reader.line_num} has other columns than the first line, which names "
                        f"{', '.join(map(str, reader.fieldnames or []))}. Quote a comma that belongs to a "
                        "text."
                    )
                yield dict(row)
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    with _foreign():
        rows = cast(list[Row], parquet.read_table(path).to_pylist())  # pyright: ignore[reportUnknownMemberType]
    yield from rows


def _arrow(folder: Path) -> Iterator[Row]:
    """Yield the rows of what `Dataset.save_to_disk` wrote; of several splits, those of "train"."""
    import pyarrow as arrow  # pyright: ignore[reportMissingTypeStubs]

    if (folder / SPLITS).is_file():
        splits = _listed_in(folder / SPLITS, "splits")
        if "train" not in splits:
            raise TaskError(
                f"{folder} has the splits {', '.join(map(str, splits))}. Name one: {folder}/SPLIT"
            )
        folder = folder / "train"
    if not is_file(folder / STATE):
        raise TaskError(f"{folder} is no folder that datasets saved: found no {STATE}. Give {FORMS}.")
    for entry in _listed_in(folder / STATE, "_data_files"):
        name = str(entry.get("filename", "")) if isinstance(entry, dict) else ""
        if Path(name).name != name or not name:
            raise TaskError(f"{folder / STATE} names the file {name!r}. Its files lie beside it.")
        if not is_file(folder / name):
            raise TaskError(
                f"{folder / STATE} names the file {name!r}: there is none. Save the data set again."
            )
        with _foreign(), arrow.memory_map(str(folder / name)) as file:  # pyright: ignore[reportUnknownMemberType]
            rows = cast(list[Row], arrow.ipc.open_stream(file).read_all().to_pylist())  # pyright: ignore[reportUnknownMemberType]
        yield from rows


@contextmanager
def _foreign() -> Generator[None]:
    """Turn whatever pyarrow raises into a ValueError.

    It reports damage through many types, and so does what it makes values with: a time zone that is none, a
    date beyond Python's.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _listed_in(file: Path, key: str) -> list[Any]:
    """Return the list that an object of JSON has under `key`. TaskError where it has none."""
    found = json.loads(file.read_text(encoding="utf-8"))
    listed = cast(dict[str, Any], found).get(key) if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise TaskError(f"{file} is no object of JSON with a list {key!r}. Save the data set again.")
    return cast(list[Any], listed)


def _written(value: Any) -> str:
    """Return an answer as text: a whole number that a column holds as 7.0 is 7."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _listed(row: Row) -> str:
    return ", ".join(map(repr, row)) or "none"
