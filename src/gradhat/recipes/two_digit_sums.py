"""A harder run: two-digit sums, which the untrained model almost never solves."""

from gradhat.training.text.config import TrainConfig


def two_digit_sums() -> TrainConfig:
    """Two-digit sums, six minutes on two cores: the levels get harder as the success rate rises.

    The untrained model answers fewer than 3 in 100, too few for a gradient. One-digit sums come first.
    """
    return TrainConfig(
        task="arithmetic:operations=+,digits=2,min_digits=2",
        curriculum=("arithmetic:operations=+,digits=1", "arithmetic:operations=+,digits=2"),
        curriculum_threshold=0.6,
        num_steps=60,
        max_new_tokens=16,
        lr=3e-5,
        checkpoint_every=20,
    )
