"""From a name to a task: what is known loads, what is not says what is."""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gradhat.envs.text import reasoning_gym
from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.load import file_of, load_task, source_hash
from gradhat.envs.text.task import check, judge
from gradhat.errors import TaskError

MY_TASK = """
from __future__ import annotations
from dataclasses import dataclass
from gradhat.envs.text.task import Question

@dataclass
class MyTask:
    word: str = "yes"

    def question(self, seed):
        return Question(f"Say {self.word} {seed} times.", " ".join([self.word] * (seed + 1)))

    def score(self, question, completion):
        return float(completion.strip() == question.answer)

class Half:
    def question(self, seed):
        return Question("Say yes.", "yes")

class Raises(type):
    def __getattr__(cls, name):
        raise RuntimeError("no " + name)

class Hidden(metaclass=Raises): ...

class Picky(MyTask):
    def __init__(self, size):
        self.size = size

def function(): ...
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_task.py"
    path.write_text(MY_TASK)
    return path


def test_arithmetic_takes_its_settings_by_name_and_type() -> None:
    assert load_task("arithmetic") == Arithmetic()
    assert load_task("arithmetic:") == Arithmetic()
    assert load_task("arithmetic:operations=+-,digits=2,num_terms=3") == Arithmetic("+-", 3, 2)
    assert load_task("arithmetic:negative=False") == Arithmetic(negative=False)
    assert load_task("arithmetic:negative= true") == Arithmetic()
    assert load_task("arithmetic:template={expression} =") == Arithmetic(template="{expression} =")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("arithmetic:digit=2", "no setting 'digit'. Known: operations, num_terms, digits"),
        ("arithmetic:negative=0", "negative='0': use true or false"),
        ("arithmetic:digits=two", "digits='two': use int"),
        ("arithmetic:digits", "'digits' has no value. Write key=value"),
        ("arithmetic:digits=0", "1 <= min_digits <= digits"),
        ("arithmetic:digits=99999999", "1 <= min_digits <= digits <= 40"),
        ("arithmetic:digits=" + "9" * 5000, "use int"),
        ("arithmetic:num_terms=1000000000", "at least 2 terms, and at most 40"),
        ("arithmetic:digits=1,digits=2", "'digits' is given twice"),
        ("reasoning_gym:gcd:value={1}", "value='{1}': found a value of a kind that no setting has"),
        ("reasoning_gym:gcd:value=b'1'", "no setting has"),
        ("reasoning_gym:gcd:value={(1, 2): 3}", "no setting has"),
        ("a\x00b.py:MyTask", "there is no file a\x00b.py"),
        ("a\ud800b.py:MyTask", "there is no file"),
        ("a" * 5000 + ".py:MyTask", "there is no file"),
        ("~nobody_of_this_name/my_task.py:MyTask", "there is no file ~nobody_of_this_name/my_task.py"),
        ("arithmetics", "Did you mean arithmetic? Use arithmetic[:key=value,...], reasoning_gym:NAME"),
        ("", "task '' is unknown. Use arithmetic"),
        ("gcd", "task 'gcd' is unknown. Use arithmetic"),
        ("reasoning_gym:gcd:max_value", "'max_value' has no value"),
    ],
)
def test_a_wrong_name_or_setting_says_what_is_known(spec: str, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(spec)
    assert message in str(caught.value)


def test_reasoning_gym_settings_are_literals(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(reasoning_gym, "ReasoningGym", lambda *arguments: asked.append(arguments))
    load_task("reasoning_gym:gcd")
    load_task("reasoning_gym:chain_sum:min_terms=2,p=0.5,allow=true,ops=['+', '-'],size=(1,2),word=a b")
    assert asked == [
        ("gcd", {}),
        (
            "chain_sum",
            {"min_terms": 2, "p": 0.5, "allow": True, "ops": ["+", "-"], "size": (1, 2), "word": "a b"},
        ),
    ]


def test_a_file_of_ones_own(file: Path) -> None:
    task = load_task(f"{file}:MyTask")
    check(task)
    assert judge(task, task.question(1), "yes yes").reward == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mytask", "no class 'Mytask'. Classes with question and score there: MyTask, Picky. Write"),
        ("", "has no class ''. Classes with question and score there: MyTask, Picky"),
        ("function", "no class 'function'"),
        ("Half", "has no method score. Give it question(self, seed)"),
        ("Hidden", "my_task.py:Hidden raised RuntimeError: no question"),
        ("Picky", "Picky() raised TypeError"),
    ],
)
def test_a_class_that_does_not_fit_is_named(file: Path, name: str, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(f"{file}:{name}" if name else str(file))
    assert message in str(caught.value)


def test_home_is_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_task("~/my_task.py:MyTask").question(0).answer == "yes"


def test_what_lies_beside_the_file_is_in_reach(file: Path) -> None:
    (file.parent / "gradhat_test_words.py").write_text("WORD = 'no'")
    source = MY_TASK.replace("from __future__ import annotations", "import gradhat_test_words")
    file.write_text(source.replace('word: str = "yes"', "word: str = gradhat_test_words.WORD"))
    before = list(sys.path)
    assert load_task(f"{file}:MyTask").question(0).answer == "no"
    assert sys.path == before


def test_an_edit_of_what_a_file_imports_is_an_edit_of_it(file: Path) -> None:
    beside = file.parent / "gradhat_test_more_words.py"
    beside.write_text("WORD = 'no'")
    file.write_text("import gradhat_test_more_words\n" + MY_TASK.partition("annotations\n")[2])
    load_task(f"{file}:MyTask")
    before = source_hash(f"{file}:MyTask")
    beside.write_text("WORD = 'yes'")
    assert source_hash(f"{file}:MyTask") != before
    beside.write_text("WORD = 'no'")
    assert source_hash(f"{file}:MyTask") == before


def test_an_edited_file_has_another_hash(file: Path) -> None:
    before = source_hash(f"{file}:MyTask")
    assert (
        before
        == source_hash(f"{file}:Picky")
        == source_hash(str(file))
        == sha256(MY_TASK.encode()).hexdigest()
    )
    file.write_text(MY_TASK + "\n")
    assert source_hash(f"{file}:MyTask") != before
    for spec in ("arithmetic", "reasoning_gym:gcd:a=1", "", "nowhere.py:MyTask", "a\x00.py:MyTask"):
        assert source_hash(spec) == ""


def test_a_file_of_questions_and_a_reward_have_hashes_too(file: Path, tmp_path: Path) -> None:
    assert source_hash(f"{file}:fn=0.5") == sha256(MY_TASK.encode()).hexdigest()
    questions = tmp_path / "q.jsonl"
    questions.write_text("{}\n")
    before = source_hash(str(questions))
    assert before == source_hash(f"{questions}:question=a,scorer=exact") == sha256(b"{}\n").hexdigest()
    assert source_hash(str(tmp_path)) == source_hash(f"{tmp_path}/nowhere.jsonl") == ""


def test_what_a_name_says_behind_its_file(tmp_path: Path) -> None:
    for spec, path, rest in (
        ("a/b.py:Mine", "a/b.py", "Mine"),
        ("a/b.py:fn=0.5", "a/b.py", "fn=0.5"),
        ("a:c/b.py:Mine", "a:c/b.py", "Mine"),
        ("a/b.py", "a/b.py", ""),
        ("q.CSV:answer=x:y", "q.CSV", "answer=x:y"),
        ("/gone/folder", "/gone/folder", ""),
    ):
        assert file_of(spec) == (Path(path), rest)
    for spec in ("arithmetic:digits=1", "reasoning_gym:gcd", "task=2", "", "q"):
        assert file_of(spec) is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"there is no file .*my_task\.py\. Check the path"):
        load_task(f"{tmp_path / 'my_task.py'}:MyTask")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (
            "import no_such_module",
            "ModuleNotFoundError: No module named 'no_such_module'. Install it, or put it",
        ),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_file_that_does_not_import_is_named_with_its_cause(tmp_path: Path, source: str, cause: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(TaskError) as caught:
        load_task(f"{path}:MyTask")
    assert cause in str(caught.value)
    assert str(path) in str(caught.value)
