"""A task behind Gymnasium's door: one step, five values, and no step without a question."""

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.env import SingleTurn
from gradhat.envs.text.task import Question, draw, held_out, key_of
from gradhat.errors import TaskError


@pytest.mark.filterwarnings("ignore:.*render.*:UserWarning", "ignore:.*spec.*:UserWarning")
def test_gymnasiums_own_checker_is_content() -> None:
    check_env(SingleTurn(Arithmetic()), skip_render_check=True)


def test_an_episode_is_one_question_and_one_answer() -> None:
    env = SingleTurn(Arithmetic(), system="Answer with a number.")
    messages, info = env.reset(seed=3)
    question: Question = info["question"]
    assert question == draw(Arithmetic(), "train", 3)
    assert messages == [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": question.text},
    ]
    after, reward, terminated, truncated, info = env.step(f"It is {question.answer}.")
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert after == [*messages, {"role": "assistant", "content": f"It is {question.answer}."}]
    assert info["verdict"].why == f"last number {question.answer}, expected {question.answer}"
    assert after in env.observation_space


def test_a_wrong_answer_terminates_with_nothing() -> None:
    env = SingleTurn(Arithmetic())
    messages, _ = env.reset(seed=3)
    assert len(messages) == 1  # no system message unless one is given
    assert env.step("no idea")[1:4] == (0.0, True, False)


def test_seeds_name_questions_and_without_one_the_stream_goes_on() -> None:
    def texts(env: SingleTurn, seed: int) -> list[str]:
        return [env.reset(seed=s)[0][-1]["content"] for s in (seed, None, None, None)]

    env = SingleTurn(Arithmetic(), "held_out")
    assert texts(env, 5) == texts(env, 5) == texts(SingleTurn(Arithmetic(), "held_out"), 5)
    assert len(set(texts(env, 5))) > 1
    assert texts(env, 5)[1:] != texts(env, 6)[1:]
    assert all(held_out(key_of(env.reset(seed=seed)[1]["question"])) for seed in range(20))


def test_a_step_without_an_open_question_is_an_error() -> None:
    env = SingleTurn(Arithmetic())
    with pytest.raises(ResetNeeded, match=r"no question is open\. Call reset\(\)"):
        env.step("7")
    env.reset(seed=0)
    env.step("7")
    with pytest.raises(ResetNeeded):
        env.step("7")


def test_a_broken_task_is_an_error_and_not_a_reward() -> None:
    class Broken(Arithmetic):
        def score(self, question: Question, completion: str) -> None:  # type: ignore[override]
            return None

    env = SingleTurn(Broken())
    env.reset(seed=0)
    with pytest.raises(TaskError, match="task Broken"):
        env.step("7")


def test_the_spaces_hold_what_the_environment_gives_and_nothing_else() -> None:
    env = SingleTurn(Arithmetic())
    assert "any text: \U0001f642" in env.action_space
    assert 7 not in env.action_space
    assert env.reset(seed=0)[0] in env.observation_space
    for wrong in ([], "hello", [{"role": "user"}], [{"role": "user", "content": 7}], [["user", "hello"]]):
        assert wrong not in env.observation_space
    with pytest.raises(gymnasium.error.Error, match="mask"):
        env.observation_space.sample(mask=())
    env.observation_space.seed(1)
    first = env.observation_space.sample()
    assert first in env.observation_space
    env.observation_space.seed(1)
    assert env.observation_space.sample() == first
    assert isinstance(env, gymnasium.Env)
