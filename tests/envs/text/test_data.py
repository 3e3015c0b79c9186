"""A file of questions is a task, whatever wrote it; a file that is none says which line and what to do."""

import csv
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gradhat.envs.text.data import read_rows
from gradhat.envs.text.load import load_task
from gradhat.envs.text.rewards import load_rewards
from gradhat.envs.text.task import check, draw, held_out, held_out_set, judge
from gradhat.errors import GradhatError, TaskError

ROWS = [{"question": f"What is {n} + 1?", "answer": n + 1, "topic": f"t{n % 7}"} for n in range(40)]


def json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def write_dataset(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """What `Dataset.save_to_disk` writes: Arrow streams, and a state.json that lists them."""
    folder.mkdir(parents=True)
    table = arrow.Table.from_pylist(rows)
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table[:25], table[25:]), strict=True):
        with arrow.OSFile(str(folder / name), "wb") as file, arrow.ipc.new_stream(file, table.schema) as out:
            out.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


WRITERS = {
    "q.jsonl": json_lines,
    "q.csv": write_csv,
    "q.parquet": write_parquet,
    "saved": write_dataset,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_questions(tmp_path: Path, name: str) -> None:
    task = load_task(str(WRITERS[name](tmp_path / name, ROWS)))
    asked = [task.question(seed) for seed in range(40)]
    assert [(q.text, q.answer) for q in asked] == [(row["question"], str(row["answer"])) for row in ROWS]
    assert task.question(41)[:2] == asked[1][:2]
    assert check(task).gold == [1.0] * 20
    assert judge(task, asked[3], "3 + 1 = 4").reward == 1.0
    assert judge(task, asked[3], "3 + 1 = 5").reward == 0.0


def test_the_train_split_of_a_folder_with_several_is_taken_and_another_may_be_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "both" / "train", ROWS)
    write_dataset(tmp_path / "both" / "test", [{**row, "answer": 0} for row in ROWS])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert load_task(str(tmp_path / "both")).question(0).answer == "1"
    assert load_task(str(tmp_path / "both" / "test")).question(0).answer == "0"
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["dev", "test"]}')
    with pytest.raises(TaskError, match="has the splits dev, test"):
        load_task(str(tmp_path / "both"))


def test_columns_are_named_and_all_of_them_stay_with_the_question(tmp_path: Path) -> None:
    rows = [{"prompt": row["question"], "gold": f"so {row['answer']}", "topic": row["topic"]} for row in ROWS]
    path = json_lines(tmp_path / "q.jsonl", rows)
    task = load_task(f"{path}:question=prompt,answer=gold,key=topic,scorer=exact")
    question = task.question(8)
    assert question == ("What is 8 + 1?", "so 9", rows[8], "t1")
    assert judge(task, question, "9").reward == 0.0
    assert judge(task, question, "so 9 \n").reward == 1.0
    sides = {q.key for q in held_out_set(task, 100, 0)}, {draw(task, "train", s).key for s in range(200)}
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert sides[0] == {topic for topic in {row["topic"] for row in ROWS} if held_out(topic)}


def test_messages_of_a_conversational_data_set_are_questions(tmp_path: Path) -> None:
    rows = [{"question": [{"role": "user", "content": "Hi?"}], "answer": "yes"}]
    assert load_task(str(json_lines(tmp_path / "q.jsonl", rows))).question(0).text == "Hi?"


def test_a_file_without_answers_needs_reward_functions(tmp_path: Path) -> None:
    task = load_task(str(json_lines(tmp_path / "q.jsonl", [{"question": "Write a poem."}])))
    assert task.question(0).answer == ""
    with pytest.raises(TaskError, match=r"--answer-column.*--reward"):
        judge(task, task.question(0), "roses")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_text(""), "holds no question"),
    "blank lines": (lambda p: p.write_text("\n\n"), "holds no question"),
    "no json": (lambda p: p.write_text('{"question": "a", "answer": "b"}\n{oops\n'), "line 2 is no JSON"),
    "a list": (lambda p: p.write_text("[1, 2]\n"), r"line 1 is \[1, 2\]"),
    "no column": (lambda p: json_lines(p, [{"q": "a"}]), r"the column 'question' was asked for; found 'q'"),
    "a hole": (lambda p: json_lines(p, [*ROWS, {"answer": 1}]), "row 41 has no 'question'"),
    "no text": (lambda p: json_lines(p, [{"question": 5, "answer": 1}]), "row 1: 'question' is 5"),
    "two turns": (
        lambda p: json_lines(p, [{"question": [{"role": "user", "content": "a"}] * 2, "answer": 1}]),
        "one message",
    ),
    "bytes": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "no text in UTF-8: .* Save it as UTF-8"),
    "another encoding": (
        lambda p: p.write_text('{"question": "é", "answer": "1"}', encoding="latin-1"),
        "Save it as UTF-8",
    ),
    "no answer": (
        lambda p: json_lines(p, [*ROWS, {"question": "a"}, {"question": "b", "answer": None}]),
        "row 41 has no answer in the column 'answer'. Fill it in, drop the row, or score with --reward",
    ),
    "a number that is none": (
        lambda p: json_lines(p, [*ROWS[:1], {"question": "a", "answer": "x"}]),
        "row 2: the answer 'x' is nothing that the scorer last_number can find",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_says_what_is_wrong_with_it(tmp_path: Path, name: str) -> None:
    write, message = BAD[name]
    write(tmp_path / "q.jsonl")
    with pytest.raises(TaskError, match=message):
        task = load_task(f"{tmp_path / 'q.jsonl'}:scorer=last_number")
        task.score(task.question(0), "1")


def test_answers_are_asked_for_where_they_are_used(tmp_path: Path) -> None:
    """Functions score a file some of whose rows have none."""
    (tmp_path / "one.py").write_text("def one(completions, **columns): return [1.0] * len(completions)\n")
    rows = [{"question": f"q{n}", "answer": None if n % 2 else n} for n in range(40)]
    task = load_rewards(
        load_task(str(json_lines(tmp_path / "q.jsonl", rows))), [f"{tmp_path / 'one.py'}:one"]
    )
    assert check(task, answers=False).empty == [1.0] * 20


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    """Python's reader keeps the last."""
    (tmp_path / "q.csv").write_text("question,answer,question\na,1,b\n")
    with pytest.raises(TaskError, match="names the column 'question' twice"):
        load_task(str(tmp_path / "q.csv"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.jsonl", "there is no such file"),
        ("q.jsonl:answer=gold", "the column 'gold' was asked for"),
        ("q.jsonl:key=gold", "--key-column"),
        ("q.jsonl:scorer=fuzzy", "the scorer 'fuzzy' is unknown. Use one of auto, last_number"),
        ("q.jsonl:colour=red", "has no setting 'colour'. Known: question, answer, key, scorer"),
        ("q.csv", "line 3 has other columns"),
        ("q.parquet", "cannot be read"),
        ("empty", "task .* is unknown"),
    ],
)
def test_a_bad_name_says_what_to_do(tmp_path: Path, spec: str, message: str) -> None:
    json_lines(tmp_path / "q.jsonl", ROWS)
    (tmp_path / "q.csv").write_text("question,answer\na,b\nc,d,e\n")
    (tmp_path / "q.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=message):
        load_task(f"{tmp_path}/{spec}")


def test_a_column_of_documents_is_no_hindrance_and_no_setting_of_the_module_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "q.csv").write_text(f"question,answer,page\nOne?,1,{'x' * (before + 1)}\n")
    assert [row["answer"] for row in read_rows(tmp_path / "q.csv")] == ["1"]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.parquet"])
def test_a_pipe_that_nobody_writes_to_is_no_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(TaskError, match="there is no such file"):
        load_task(str(tmp_path / name))


def test_an_endless_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").symlink_to("/dev/zero")
    with pytest.raises(TaskError, match="there is no such file"):
        load_task(str(tmp_path / "q.jsonl"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no object of JSON with a list '_data_files'"),
        ("[]", "no object of JSON with a list '_data_files'"),
        ('{"_data_files": 5}', "no object of JSON with a list '_data_files'"),
        ('{"_data_files": null}', "no object of JSON with a list '_data_files'"),
        ('{"_data_files": [{"filename": null}]}', "names the file 'None': there is none"),
        ('{"_data_files": [{"filename": "pipe"}]}', "names the file 'pipe': there is none"),
    ],
)
def test_a_list_of_files_that_is_none_is_named(tmp_path: Path, content: str, message: str) -> None:
    folder = write_dataset(tmp_path / "saved", ROWS)
    os.mkfifo(folder / "pipe")
    (folder / "state.json").write_text(content)
    with pytest.raises(TaskError, match=message):
        load_task(str(folder))


@pytest.mark.parametrize("content", ["[]", '{"splits": 5}', '{"splits": null}'])
def test_a_list_of_splits_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(TaskError, match="no object of JSON with a list 'splits'"):
        load_task(str(tmp_path))


def test_an_answer_that_only_the_first_row_lacks_is_missing_there(tmp_path: Path) -> None:
    json_lines(tmp_path / "q.jsonl", [{"question": "a"}, *ROWS])
    with pytest.raises(TaskError, match="row 1 has no answer in the column"):
        task = load_task(str(tmp_path / "q.jsonl"))
        task.score(task.question(0), "1")


def test_a_folder_cannot_point_at_files_elsewhere(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "saved", ROWS)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(TaskError, match="lie beside it"):
        load_task(str(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ANY_ROW = JSON | st.fixed_dictionaries({"question": JSON, "answer": JSON})
TORN = st.binary(max_size=60)


def opened(path: Path) -> None:
    """Load and use what lies at `path`: it works, or ends in an error of this project."""
    with suppress(GradhatError):
        task = load_task(str(path))
        judge(task, task.question(0), "7")


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(ANY_ROW, max_size=3), torn=TORN)
def test_any_content_is_questions_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], torn: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    opened(json_lines(folder / "q.jsonl", rows))
    for name in ("torn.jsonl", "torn.csv", "torn.parquet"):
        (folder / name).write_bytes(torn)
        opened(folder / name)
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_text(json.dumps(rows[0] if rows else None))
    opened(folder / "saved")


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(rows=st.lists(ANY_ROW, max_size=3), torn=TORN)
def test_much_content_is_questions_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], torn: bytes
) -> None:
    test_any_content_is_questions_or_an_error.hypothesis.inner_test(tmp_path_factory, rows, torn)  # type: ignore[attr-defined]


def test_empty_columns_of_a_spreadsheet_are_no_column_twice(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("question,answer,,\nOne?,1,,\n")
    assert load_task(str(tmp_path / "q.csv")).question(0)[:2] == ("One?", "1")


def test_a_blank_answer_is_none(tmp_path: Path) -> None:
    task = load_task(str(json_lines(tmp_path / "q.jsonl", [{"question": "One?", "answer": "  "}])))
    with pytest.raises(TaskError, match="row 1 has no answer in the column 'answer'"):
        judge(task, task.question(0), "1")
