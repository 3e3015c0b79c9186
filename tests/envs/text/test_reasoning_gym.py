"""reasoning-gym made safe: no answer runs as code, no scorer is cheated, no scorer ends the program."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradhat.envs.text import reasoning_gym
from gradhat.envs.text.load import load_task
from gradhat.envs.text.reasoning_gym import EMPTY, INSTRUCTION, ReasoningGym
from gradhat.envs.text.task import Checked, Question, check, draw, held_out, judge
from gradhat.errors import TaskError
from gradhat.worker import WorkerLost

WORKER = Path(reasoning_gym.__file__).with_name("reasoning_gym_worker.py")
EXECUTING = {
    "binary_matrix": ("0 1\n1 0", {}),
    "spiral_matrix": ("1 2 3", {}),
    "string_insertion": ("ABC", {}),
    "n_queens": ("_ Q\nQ _", {"valid_answers": ["_ Q\nQ _", "Q _\n_ Q"]}),
    "countdown": ("5 + 3", {"numbers": [5, 3], "target": 8}),
    "puzzle24": ("4*6 + 1 - 1", {"numbers": [4, 6, 1, 1]}),
    "simple_integration": ("x**2/2 + C", {"variable": "x"}),
    "intermediate_integration": ("x**2/2 + C", {"variable": "x"}),
    "polynomial_multiplication": ("x**2 + 1", {"variables": ["x", "y", "z"]}),
}
"""The nine tasks whose scorers run the answer as Python: a gold answer each, and its facts."""


def attacks(path: Path) -> list[str]:
    """Answers that would write `path` if anything ran them."""
    return [
        f"__import__('os').system('touch {path}')",
        f"open('{path}', 'w')",
        f"[open('{path}', 'w')]",
        f"1 + __import__('pathlib').Path('{path}').touch()",
        f"x**2/2 + __import__('os').close(__import__('os').open('{path}', 65))",
        f"[c for c in ().__class__.__base__.__subclasses__() if 'Popen' in str(c)][0](['touch', '{path}'])",
        f"(lambda: exec(\"open('{path}','w')\"))()",
        f"5 + 3 if open('{path}', 'w') else 8",
        f"__import__('subprocess').run(['touch', '{path}'])",
        f"__import__('os').symlink('/', '{path}')",
        f"__import__('os').mkdir('{path}')",
        f"__import__('shutil').copy('/etc/hostname', '{path}')",
    ]


class Canned:
    """A worker that gives one prepared question, and remembers what it was asked to score."""

    def __init__(
        self, answer: str | None, facts: dict[str, Any], value: Any = 0.0, own_scorer: bool = True
    ) -> None:
        self.item = {"text": "What?\n", "answer": answer, "facts": facts}
        self.value = value
        self.own_scorer = own_scorer
        self.scored: list[str] = []

    def start(self) -> dict[str, Any]:
        return {"own_scorer": self.own_scorer}

    def stop(self) -> None:
        pass

    def call(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if request["op"] == "question":
            return self.item
        self.scored.append(request["answer"])
        if isinstance(self.value, Exception):
            raise self.value
        return self.value if isinstance(self.value, dict) else {"value": self.value}


def canned(monkeypatch: pytest.MonkeyPatch, name: str, worker: Canned) -> tuple[ReasoningGym, Question]:
    """Return a task and its question, with `worker` in the place of the process."""
    monkeypatch.setattr(reasoning_gym, "Worker", lambda script, opening: worker)
    task = ReasoningGym(name)
    return task, task.question(0)


@pytest.mark.parametrize("name", EXECUTING)
def test_text_that_is_not_data_reaches_no_scorer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, facts = EXECUTING[name]
    worker = Canned(gold, facts, value=1.0)  # a scorer that believes everything
    task, question = canned(monkeypatch, name, worker)
    target = tmp_path / "written"
    for attack in attacks(target):
        for completion in (attack, f"<answer>{attack}</answer>", f"<answer>{gold} + {attack}</answer>"):
            assert judge(task, question, completion).reward == 0.0
    assert worker.scored == []
    assert not os.path.lexists(target)
    assert judge(task, question, gold).reward == 1.0


CONFINED = """
import importlib.util, json, os, sys
path, target, names, answers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
spec = importlib.util.spec_from_file_location("worker", path)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
rules = worker.confined()
tasks = {name: worker.open_task(name, {})[0] for name in names}
import builtins
builtins.ran = []
probe = "__import__('builtins').ran.append('%s')"
if sys.argv[5] == "confined":
    rules.confine()
rules.limit_time(60)
for name, task in tasks.items():
    task.score(0, probe % name)
    for answer in answers:
        request = {"op": "score", "seed": 0, "answer": answer, "seconds": 5}
        rules.answered(lambda r: worker.answer(task, r), request)
openings = {name: worker.open_task(name, config)[1] for name, config in json.loads(sys.argv[6])}
print(json.dumps([builtins.ran, os.path.lexists(target), openings]))
"""


def run_scorers(target: Path, answers: list[str], how: str) -> tuple[list[str], bool, dict[str, Any]]:
    """Let the library's own nine scorers run `answers`, all in one process.

    Returns which ran a probe, whether `target` is there, and how the worker answers the `OPENINGS`.
    """
    arguments = [str(WORKER), str(target), json.dumps(list(EXECUTING)), json.dumps(answers), how]
    done = subprocess.run(
        [sys.executable, "-P", "-c", CONFINED, *arguments, json.dumps(OPENINGS)],
        env={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ran, written, openings = json.loads(done.stdout.splitlines()[-1])
    return ran, written, openings


OPENINGS: list[tuple[str, dict[str, Any]]] = [
    ("chain_sums", {}),
    ("composite", {}),
    ("gcd", {"seed": 3, "max_num": 5}),
    ("lcm", {"min_value": 9, "max_value": 3}),
    ("ab", {"length": 4}),
    ("aiw", {}),
]


def test_even_what_runs_in_the_worker_changes_nothing_outside_it(tmp_path: Path) -> None:
    # Past the guard on purpose: the library's scorers do run the probe, and still no file appears.
    target = tmp_path / "written"
    ran, written, openings = run_scorers(target, attacks(target), "confined")
    assert set(ran) == set(EXECUTING)
    assert not written
    assert not list(tmp_path.iterdir())
    assert openings["chain_sums"]["error"] == openings["composite"]["error"] == "name"
    assert len(openings["chain_sums"]["known"]) == 105
    assert openings["gcd"] == {"error": "key", "known": GCD_SETTINGS}
    assert openings["lcm"]["error"] == "value"
    assert openings["lcm"]["cause"].startswith("AssertionError")
    assert openings["ab"] == {"own_scorer": True}
    assert openings["aiw"] == {"own_scorer": False}


GCD_SETTINGS = ["max_numbers", "max_value", "min_numbers", "min_value"]


@pytest.mark.slow
def test_without_the_confinement_the_same_answers_write(tmp_path: Path) -> None:
    target = tmp_path / "written"
    assert run_scorers(target, attacks(target)[:1], "free")[1]


@pytest.fixture(scope="module")
def countdown() -> Iterator[ReasoningGym]:
    task = ReasoningGym("countdown", {"min_numbers": 3, "max_numbers": 3})
    yield task
    task._worker.stop()


def test_countdown_is_judged_exactly(countdown: ReasoningGym) -> None:
    assert check(countdown, 5) == Checked([1.0] * 5, [0.0] * 5)
    question = countdown.question(1)
    assert question.text.endswith(INSTRUCTION)
    numbers, target = question.entry["facts"]["numbers"], question.entry["facts"]["target"]
    twisted = f"0 + {question.answer}"
    for wrong in (str(target), f"{target} + 0", twisted, f"{question.answer} = {target}", "", "float('nan')"):
        assert judge(countdown, question, wrong).reward == 0.0, wrong
    assert judge(countdown, question, f"I think\n{question.answer}").reward == 1.0
    assert judge(countdown, question, f"<answer> ({question.answer}) </answer> there").reward == 1.0
    assert sorted(numbers) == sorted(
        int(n) for n in question.answer.replace("-", "+").split("+") if n.isdigit()
    ) or (len(numbers) == 3)


def test_the_worker_serves_questions_of_both_splits(countdown: ReasoningGym) -> None:
    assert not held_out(draw(countdown, "train", 3).text)
    assert held_out(draw(countdown, "held_out", 3).text)


def test_a_worker_that_is_gone_comes_back(countdown: ReasoningGym) -> None:
    before = countdown.question(2)
    countdown._worker.stop()
    assert countdown.question(2) == before


def test_the_worker_has_no_file_no_program_and_no_environment(countdown: ReasoningGym) -> None:
    countdown.question(0)
    process = countdown._worker._process
    assert process is not None
    limits = Path(f"/proc/{process.pid}/limits")
    if not limits.exists():
        pytest.skip("only Linux shows a process's limits")
    lines = {line[:26].strip(): line[26:].split() for line in limits.read_text().splitlines()}
    assert lines["Max file size"][:2] == ["0", "0"]
    assert lines["Max address space"][:2] == [str(2 << 30)] * 2
    assert lines["Max cpu time"][0].isdigit()


@pytest.mark.slow
def test_a_scorer_that_raises_gives_a_verdict() -> None:
    task = ReasoningGym("prime_factorization")
    question = task.question(0)
    verdict = judge(task, question, "<answer>two × three</answer>")
    task._worker.stop()
    assert verdict.reward == 0.0
    assert "the scorer raised ValueError" in verdict.why


def test_a_task_without_gold_is_judged_by_its_scorer() -> None:
    triangle = "num_colors=3,min_num_vertices=3,max_num_vertices=3,edge_probability=0.999"
    task = load_task(f"reasoning_gym:graph_color:{triangle}")
    assert isinstance(task, ReasoningGym)
    assert check(task, 3) == Checked([], [0.0] * 3)
    question = task.question(0)
    assert question.answer == ""
    colours = ({str(v): 1 + (code // 3**v) % 3 for v in range(3)} for code in range(27))
    rewards = [judge(task, question, f"<answer>{json.dumps(c)}</answer>").reward for c in colours]
    task._worker.stop()
    assert sum(rewards) == 6  # the three corners have three different colours


def test_an_empty_tag_is_no_answer_where_there_is_no_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    task, question = canned(monkeypatch, "rush_hour", Canned(None, {}, value=1.0))
    for nothing in ("", " \n", "<answer></answer>", "<answer> </answer>"):
        assert judge(task, question, nothing).reward == 0.0


def test_an_empty_gold_is_written_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Canned("", {}, value=1.0)  # the library pays for any text that holds no number
    task, question = canned(monkeypatch, "polynomial_equations", worker)
    assert question.answer == EMPTY
    assert judge(task, question, f"There is none:\n{EMPTY}").reward == 1.0
    assert judge(task, question, "<answer></answer>").reward == 1.0
    for wrong in ("", "none", "1.5", "abc"):
        assert judge(task, question, wrong).reward == 0.0


@pytest.mark.parametrize("name", ["complex_arithmetic", "number_sorting"])
@pytest.mark.parametrize("answer", ["nan", "NaN", "nan+nanj", "[NaN]", '["nan", "nan"]'])
def test_nan_is_no_answer(name: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, question = canned(monkeypatch, name, Canned("[1, 2]", {}, value=1.0))
    verdict = judge(task, question, answer)
    assert verdict.reward == 0.0
    assert "not a finite number" in verdict.why


@pytest.mark.parametrize(
    ("name", "gold", "facts", "wrong", "right"),
    [
        ("game_of_life_halting", "False", {}, ["x", "True", "0", "not False"], ["False", "false"]),
        (
            "coin_flip",
            "0.234375",
            {},
            ["0", "0.2", "-0.234375", "1/0", "0.24", "nan"],
            ["15/64", "0.2344", ".234375"],
        ),
        ("coin_flip", "0.0000305", {}, ["0", "0.00001"], ["0.0000305"]),
        (
            "puzzle24",
            "4*6 + 1 - 1",
            {"numbers": [4, 6, 1, 1]},
            ["6*4", "8*3*1*1", "24.9"],
            ["(4 * 6) * 1 / 1"],
        ),
        ("figlet_font", "ABCDEFGHIJ", {}, ["abcdefghijk", "abcdefghi"], ["abcdefghij"]),
        ("letter_jumble", "go home", {}, ["go home now", "go"], ["Go home"]),
        ("word_sorting", "a, b, c", {}, ["a, b, c, d", "a, b", "a b c"], ["a,b,  c"]),
        ("n_queens", "_ Q\nQ _", EXECUTING["n_queens"][1], ["_ Q\n_ Q", "[['_', 'Q']]"], ["Q _\n_ Q"]),
        ("gsm_symbolic", "5", {}, ["-5", "5 of 6"], ["it is 5.0"]),
    ],
)
def test_scorers_that_could_be_cheated_are_replaced(
    name: str,
    gold: str,
    facts: dict[str, Any],
    wrong: list[str],
    right: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Canned(gold, facts, value=1.0)
    task, question = canned(monkeypatch, name, worker)
    assert {answer: judge(task, question, answer).reward for answer in [*wrong, *right, gold]} == {
        **dict.fromkeys(wrong, 0.0),
        **dict.fromkeys([*right, gold], 1.0),
    }
    assert worker.scored == []


def test_the_default_scorer_pays_nothing_for_a_substring(monkeypatch: pytest.MonkeyPatch) -> None:
    task, question = canned(monkeypatch, "spell", Canned("olleh", {}, own_scorer=False))
    rewards = [
        judge(task, question, text).reward
        for text in ("olleh", " olleh \n", "is olleh", "oll", "hello\nolleh")
    ]
    assert rewards == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_numbers_are_read_from_the_end_and_other_answers_get_an_instruction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, question = canned(monkeypatch, "gcd", Canned("12", {}, own_scorer=False))
    assert question.text == "What?\n"
    rewards = [
        judge(task, question, text).reward for text in ("4, no, 12.", "<answer>12</answer> or 13", "12 of 13")
    ]
    assert rewards == [1.0, 1.0, 0.0]
    task, question = canned(monkeypatch, "maze", Canned("1 2\n3 4", {}, own_scorer=False))
    assert question.text == f"What?\n\n{INSTRUCTION}"
    assert judge(task, question, "so\n1 2 \n3 4").reward == 1.0
    assert judge(task, question, "<answer>\n1 2\n3 4\n</answer> done").reward == 1.0
    assert judge(task, question, "<answer>so\n1 2\n3 4</answer>").reward == 0.0


@pytest.mark.parametrize(
    ("value", "reward", "why"),
    [
        (1.0, 1.0, "read 'b'"),
        (0.99999, 0.0, "read 'b'"),
        (1.5, 0.0, "read 'b'"),
        (0.01, 0.0, "read 'b'"),
        (float("nan"), 0.0, "the scorer returned nan"),
        ({"error": "TypeError: no"}, 0.0, "the scorer raised TypeError: no"),
    ],
)
def test_what_becomes_of_a_scorers_word(
    value: Any, reward: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Canned("a", {}, value=value)
    task, question = canned(monkeypatch, "zebra_puzzles", worker)
    verdict = judge(task, question, "b")
    assert worker.scored == ["b"]
    assert verdict.reward == reward == verdict.parts["correct"]
    assert why in verdict.why
    if isinstance(value, float) and value == value:
        assert verdict.parts["score"] == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (WorkerLost("it died"), "read 'b', expected 'a'; no verdict from the scorer: it died"),
        ({"broken": "ImportError: no sympy"}, "the scorer does not work: ImportError: no sympy"),
    ],
)
def test_a_scorer_that_is_gone_is_an_error_not_a_wrong_answer(
    value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, question = canned(monkeypatch, "zebra_puzzles", Canned("a", {}, value=value))
    with pytest.raises(TaskError, match=rf"reasoning_gym:zebra_puzzles: .*{message}"):
        judge(task, question, "b")
    assert judge(task, question, "a").reward == 1.0  # what needs no scorer is judged without one


def test_a_generator_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Canned("a", {})
    task, _ = canned(monkeypatch, "zebra_puzzles", worker)
    worker.item = {"error": "RuntimeError: no puzzle"}
    with pytest.raises(TaskError, match=r"reasoning_gym:zebra_puzzles: question\(seed=3\).*no puzzle"):
        task.question(3)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"error": "name", "known": ["chain_sum", "gcd"]}, "no task 'chain_sums'. Near it: chain_sum."),
        ({"error": "name", "known": ["gcd", "lcm"]}, "no task 'chain_sums'. Known: gcd, lcm."),
        ({"error": "key", "known": ["max_terms"]}, "no setting terms. Known: max_terms."),
        (
            {"error": "value", "cause": "AssertionError: 3 < 2"},
            "{'terms': 3} makes no question: AssertionError: 3",
        ),
        ({"error": "import", "cause": "No module named 'reasoning_gym'"}, "needs the package reasoning-gym"),
    ],
)
def test_a_refused_opening_says_what_to_do(
    reply: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Canned("a", {})
    monkeypatch.setattr(worker, "start", lambda: reply)
    monkeypatch.setattr(reasoning_gym, "Worker", lambda script, opening: worker)
    with pytest.raises(TaskError) as caught:
        ReasoningGym("chain_sums", {"terms": 3})
    assert message in str(caught.value)


def all_names() -> list[str]:
    """Every task of the library, without importing it here: each is registered in a file of the package."""
    import importlib.util
    import re

    spec = importlib.util.find_spec("reasoning_gym")
    assert spec is not None and spec.origin is not None
    names = set()
    for file in Path(spec.origin).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        names |= set(re.findall(r'^DATASET_NAME = "(\w+)"', text, re.MULTILINE))
        names |= set(re.findall(r'^register_dataset\(\s*"(\w+)"', text, re.MULTILINE))
    return sorted(names - {"composite"})


@pytest.mark.slow
@pytest.mark.parametrize("name", all_names())
def test_every_task_checks_itself_and_pays_for_no_junk(name: str) -> None:
    task = ReasoningGym(name)
    found = check(task, 3)
    assert set(found.gold) <= {1.0}
    assert found.empty == [0.0] * 3
    again = ReasoningGym(name)
    for seed in (5, 123456789):
        assert again.question(seed) == task.question(seed)
    junk = [
        "nan",
        "nan+nanj",
        "inf",
        "None",
        "[]",
        "{}",
        "[[]]",
        '["nan"]',
        "I do not know.",
        "()",
        "🙂\ud800",
    ]
    question = task.question(7)
    for text in [*junk, "[" * 3000, "9" * 5000, "A" * 3000]:
        verdict = judge(task, question, text)
        assert verdict.reward == (text == question.answer), (text, question.answer)
        assert "no verdict" not in verdict.why
    task._worker.stop()
    again._worker.stop()
