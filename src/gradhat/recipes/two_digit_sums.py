"""A harder run: two-digit sums, which the untrained model almost never solves."""

from gradhat.training.config import TrainConfig


def two_digit_sums() -> TrainConfig:
    """Two-digit sums, half an hour on two cores: the levels get harder as the success rate rises.

    The untrained model answers about 3 in 100, too few for a gradient. One-digit sums come first.
    """
    return TrainConfig(
        task="arithmetic:operations=+,digits=2,min_digits=2",
        curriculum=("arithmetic:operations=+,digits=1", "arithmetic:operations=+,digits=2"),
        num_steps=200,
        num_prompts=16,
    )
