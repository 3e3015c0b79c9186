"""A person, or a pipe, answers questions."""

import io
from pathlib import Path

import pytest

from gradhat.cli import play
from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.task import draw, held_out_set
from gradhat.errors import ConfigError, TaskError


def say(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_answers_are_judged_until_the_input_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (draw(Arithmetic(), "train", seed) for seed in (7, 8, 9))
    say(monkeypatch, f"{first.answer}\nno idea\n")
    assert play.main(["arithmetic", "--seed", "7"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(text) for text in (first.text, "reward 1", second.text, "reward 0", third.text)]
    assert places == sorted(places)
    assert f"last number {first.answer}, expected {first.answer}" in shown
    assert f"no number, expected {second.answer}" in shown
    assert f"its own answer: {second.answer}\n" in shown
    assert third.answer not in shown[shown.index(third.text) + len(third.text) :]
    assert shown.endswith("2 answers: mean reward 0.5\n")


def test_held_out_questions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say(monkeypatch, "1\n" * 5)
    assert play.main(["arithmetic", "--held-out"]) == 0
    asked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("What")]
    assert len(asked) == 6
    assert set(asked) <= {question.text for question in held_out_set(Arithmetic(), 1000, 0)}


def test_input_that_ends_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say(monkeypatch, "")
    assert play.main(["arithmetic"]) == 0
    assert capsys.readouterr().out.endswith("0 answers\n")


def test_an_answer_of_several_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "grid.py").write_text(
        "from gradhat.envs.text.task import Question\n"
        "class Grid:\n"
        "    def question(self, seed): return Question(f'Grid {seed}?', '1 2\\n3 4')\n"
        "    def score(self, question, completion): return completion == question.answer\n"
    )
    say(monkeypatch, "1 2\n3 4\n1 2\n")
    assert play.main([f"{tmp_path / 'grid.py'}:Grid"]) == 0
    shown = capsys.readouterr().out
    assert "reward 1: the task gives no reason" in shown
    assert shown.endswith("2 answers: mean reward 0.5\n")


def test_wrong_commands_say_what_is_known() -> None:
    with pytest.raises(ConfigError, match="found no task"):
        play.main([])
    with pytest.raises(ConfigError, match=r"--sed.*--seed"):
        play.main(["arithmetic", "--sed", "1"])
    with pytest.raises(TaskError, match="Did you mean arithmetic"):
        play.main(["arithmetics"])


def test_columns_and_reward_functions_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.jsonl").write_text('{"ask": "Go?", "gold": "yes"}\n' * 2)
    (tmp_path / "mine.py").write_text("def fixed(completions, **_):\n    return [3.25] * len(completions)\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    monkeypatch.setattr("gradhat.envs.text.task.held_out", lambda key: False)
    flags = ["--question-column", "ask", "--answer-column", "gold", "--reward", f"{tmp_path}/mine.py:fixed"]
    assert play.main([str(tmp_path / "q.jsonl"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "Go?" in printed and "reward 3.25" in printed and "its own answer: yes" in printed
