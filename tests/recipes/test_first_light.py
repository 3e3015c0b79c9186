"""The first recipe: a config that can be launched, on a task large enough to hold questions out."""

from gradhat.envs.text.load import load_task
from gradhat.envs.text.task import held_out_set
from gradhat.recipes.first_light import first_light
from gradhat.training.text.config import check


def test_it_can_be_launched() -> None:
    check(first_light())


def test_its_task_has_questions_to_learn_and_to_hold_out() -> None:
    # 255 distinct questions of 55 pairs of operands; the hash holds 14 pairs out.
    assert len(held_out_set(load_task(first_light().task), 1000, seed=0)) == 68
