"""Whatever a Parquet or Arrow file holds: rows that are used, or one of our errors and nothing changed."""

from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from damage import COLUMNS, damaged, trials
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from gradhat.envs.text.load import load_task
from gradhat.envs.text.rewards import arguments
from gradhat.envs.text.task import Question, ask, fingerprint, held_out_set, judge
from gradhat.errors import RunError, TaskError
from gradhat.rollouts.engine import Completion
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.evaluate import Measurement, Scale
from gradhat.training.text.rollouts import SCHEMA, write_evals
from gradhat.trajectories import Record, Verdict

LENGTHS = [30, pytest.param(500, marks=pytest.mark.slow)]
NAMES = st.sampled_from(["question", "answer", "key", "prompts", "self", "", "\0", "question.answer"])
ASKED = arrow.array(["3 + 4?", "Which letter?", "\0"])
ANY = st.sampled_from(COLUMNS)
MORE = st.lists(st.tuples(NAMES, ANY), max_size=3)
TABLES = MORE | st.tuples(ANY, ANY).map(
    lambda found: [("question", ASKED), ("answer", found[0]), ("question.answer", found[1])]
)
SETTINGS = st.sampled_from(["", ":scorer=exact", ":key=key", ":question=answer", ":key=question.answer"])


def table(columns: list[tuple[str, Any]]) -> Any:
    return arrow.Table.from_arrays([column for _, column in columns], names=[name for name, _ in columns])


def is_task(spec: str) -> bool:
    """Whether `spec` is a task that can be asked; an error of this project says why not."""
    try:
        task = load_task(spec)
    except TaskError as error:
        assert len(str(error)) > 30
        return False
    questions = held_out_set(task, 3, 0) or [ask(task, 0)]
    fingerprint(questions)
    given = arguments(questions, ["7"] * len(questions), [(7,)] * len(questions))
    assert all(len(column) == len(questions) for column in given.values())
    for question in questions:
        question.text.encode()
        try:
            assert judge(task, question, "7").reward in (0, 1)
        except TaskError as error:
            assert "no column 'answer'" in str(error)
    return True


@pytest.mark.parametrize("examples", LENGTHS)
def test_any_columns_are_questions_or_an_error(examples: int, tmp_path: Path) -> None:
    file, outcomes = tmp_path / "q.parquet", set[bool]()

    @trials(examples)
    @given(columns=TABLES, num_rows=st.integers(0, 3), asked=SETTINGS)
    def run(columns: list[tuple[str, Any]], num_rows: int, asked: str) -> None:
        parquet.write_table(table(columns)[:num_rows], file)
        outcomes.add(is_task(f"{file}{asked}"))

    run()
    assert outcomes == {True, False}


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("examples", LENGTHS)
def test_any_bytes_are_questions_or_an_error(examples: int, kind: str, tmp_path: Path) -> None:
    whole = table([("question", COLUMNS[2]), ("answer", COLUMNS[5]), ("key", COLUMNS[-1])])
    whole = whole.filter(arrow.array([True, False, True]))
    if kind == "parquet":
        place = file = tmp_path / "q.parquet"
        parquet.write_table(whole, file)
    else:
        place, file = tmp_path, tmp_path / "data.arrow"
        (place / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        with arrow.OSFile(str(file), "wb") as out, arrow.ipc.new_stream(out, whole.schema) as stream:
            stream.write_table(whole)
    assert is_task(str(place))
    contents, outcomes = file.read_bytes(), set[bool]()

    @trials(examples)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        file.write_bytes(damaged(contents, data))
        outcomes.add(is_task(str(place)))

    run()
    assert False in outcomes


MEASURED = Measurement(
    None,  # pyright: ignore[reportArgumentType] -- nobody is asked
    [Question("3 + 4?", "7")],
    [(1, 2)],
    [[Completion((5, 6), (-0.5, -1.0), "end", "7")]],
    [[Record("3 + 4?", "7", Verdict(1.0, {}, "right"), "end")]],
    Scale(),
)


def added(folder: Path, file: Path) -> bool:
    """Whether a measurement could be added to a file: it then holds it, once. An error leaves it alone."""
    before = file.read_bytes()
    try:
        write_evals(RunFolder(folder), 1, "after", 9, MEASURED)
    except RunError as error:
        assert str(file) in str(error) and "move it away" in str(error)
        assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]
        return False
    rows = parquet.read_table(file).to_pylist()
    assert [row["completion"] for row in rows if row["phase"] == "after"] == ["7"]
    assert list(rows[0]) == list(SCHEMA)
    return True


def test_a_measurement_takes_the_place_of_its_own_and_of_no_other(tmp_path: Path) -> None:
    for phase, greedy in (("during", False), ("after", False), ("after", True), ("after", False)):
        write_evals(RunFolder(tmp_path), 1, phase, 9, MEASURED, greedy=greedy)  # pyright: ignore[reportArgumentType]
    rows = parquet.read_table(tmp_path / "evals/step_000001.parquet").to_pylist()
    assert [(row["step"], row["phase"], row["greedy"]) for row in rows] == [
        (1, "during", False),
        (1, "after", True),
        (1, "after", False),
    ]


@pytest.mark.parametrize("examples", LENGTHS)
def test_any_bytes_of_evals_are_rows_or_an_error(examples: int, tmp_path: Path) -> None:
    file, outcomes = tmp_path / "evals/step_000001.parquet", set[bool]()
    write_evals(RunFolder(tmp_path), 1, "during", 9, MEASURED)
    whole = file.read_bytes()

    @trials(examples)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        file.write_bytes(damaged(whole, data))
        outcomes.add(added(tmp_path, file))

    run()
    assert False in outcomes


@pytest.mark.parametrize("examples", LENGTHS)
def test_any_columns_of_evals_are_rows_or_an_error(examples: int, tmp_path: Path) -> None:
    file, outcomes = tmp_path / "evals/step_000001.parquet", set[bool]()
    write_evals(RunFolder(tmp_path), 1, "during", 9, MEASURED)
    one = parquet.read_table(file)
    rows = arrow.concat_tables([one] * 3)
    names = st.sampled_from([*SCHEMA, "more"])

    @trials(examples)
    @given(changes=st.dictionaries(names, st.none() | st.sampled_from(COLUMNS), max_size=2))
    def run(changes: dict[str, Any]) -> None:
        found = rows
        for name, column in changes.items():
            found = found.drop_columns([name]) if name in found.column_names else found
            found = found if column is None else found.append_column(name, column)
        parquet.write_table(found, file)
        outcomes.add(added(tmp_path, file))

    run()
    assert outcomes == {True, False}
