"""The harder recipe: a config that can be launched, with easier sums before the ones it is measured on."""

from gradhat.envs.text.load import load_task
from gradhat.envs.text.task import draw
from gradhat.recipes.two_digit_sums import two_digit_sums
from gradhat.training.text.config import check


def test_it_can_be_launched() -> None:
    check(two_digit_sums())


def test_it_ends_on_sums_of_two_digits_and_begins_below() -> None:
    config = two_digit_sums()

    def largest(spec: str) -> int:
        questions = [draw(load_task(spec), "train", seed) for seed in range(50)]
        return max(int(word) for q in questions for word in q.text.rstrip("?").split() if word.isdigit())

    assert 10 <= largest(config.task) <= 99
    assert config.curriculum and largest(config.curriculum[0]) <= 9
