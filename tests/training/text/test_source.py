"""The question stream: continued exactly, never a held-out question, and levels that open in time."""

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.task import Question, held_out_set
from gradhat.training.text.source import WINDOW, Source

EASY, HARD = Arithmetic("+", digits=1), Arithmetic("*", digits=2)


def source(*levels: Arithmetic, seed: int = 0) -> Source:
    return Source(levels or (EASY, HARD), system="", threshold=0.7, seed=seed)


def questions(stream: Source, n: int) -> list[str]:
    starts = [next(stream) for _ in range(n)]
    return [start.make().reset(seed=start.seed)[0][-1]["content"] for start in starts]


def test_a_restored_stream_continues_where_it_was() -> None:
    first, second = source(), source()
    questions(first, 5)
    first.observe([1.0, 0.0, 0.5])
    second.restore(first.state())
    assert second.state() == first.state()
    assert questions(first, 5) == questions(second, 5)


def test_another_seed_is_another_stream() -> None:
    assert questions(source(HARD, seed=0), 8) != questions(source(HARD, seed=1), 8)


def test_held_out_questions_are_never_trained_on() -> None:
    asked = set(questions(source(EASY), 100))
    assert asked.isdisjoint(question.text for question in held_out_set(EASY, 1000, 0))


def test_a_question_is_drawn_once_for_all_who_sample_it() -> None:
    asked: list[int] = []

    class Counting(Arithmetic):
        def question(self, seed: int) -> Question:
            asked.append(seed)
            return super().question(seed)

    stream = source(Counting())
    for start in [next(stream) for _ in range(20)]:
        first, *others = [start.make().reset(seed=start.seed)[1]["question"] for _ in range(8)]
        assert all(question is first for question in others)
    assert len(asked) == len(set(asked)) < 60  # a draw walks on from those that are held out


def test_the_next_level_opens_when_the_rate_reaches_the_threshold() -> None:
    stream = source()
    assert not stream.observe([0.69] * (3 * WINDOW))
    assert "+" in questions(stream, 1)[0]
    assert stream.observe([1.0] * WINDOW)
    assert "*" in questions(stream, 1)[0]
    assert not stream.observe([1.0] * (3 * WINDOW))


def test_a_few_lucky_prompts_open_nothing() -> None:
    # Catches a moving average that starts at the first value and opens on it.
    assert not source().observe([1.0] * (WINDOW - 1))


def test_the_rate_starts_afresh_on_a_new_level() -> None:
    stream = Source((EASY, EASY, HARD), system="", threshold=0.7, seed=0)
    assert stream.observe([1.0] * WINDOW)
    assert not stream.observe([1.0] * 8)
    assert stream.level == 1


def test_the_system_prompt_opens_every_conversation() -> None:
    stream = Source((EASY,), system="Be brief.", threshold=0.7, seed=0)
    start = next(stream)
    assert start.make().reset(seed=start.seed)[0][0] == {"role": "system", "content": "Be brief."}
