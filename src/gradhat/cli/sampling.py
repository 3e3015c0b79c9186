"""Flags for how tokens are drawn and when a completion stops: what `gradhat eval` and `gradhat chat`
share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradhat.rollouts.engine import Limits

REPEATABLE = ("--stop", "--template-args")
"""Flags that may be given several times."""


@dataclass(frozen=True)
class Sampling:
    """Of the distribution over tokens, and of its end."""

    top_k: int = 0
    """Sample from this many of the most likely tokens; 0 from all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this share of the probability."""
    min_p: float = 0.0
    """Sample from the tokens of at least this share of the largest probability."""
    stop: tuple[str, ...] = ()
    """Texts or special tokens that end a completion, which is cut before them."""

    def limits(self, max_new_tokens: int, temperature: float, seed: int = 0) -> "Limits":
        """Return the limits of a completion. ConfigError for a value out of range."""
        from gradhat.rollouts.engine import Limits

        return Limits(max_new_tokens, temperature, self.top_k, self.top_p, self.min_p, self.stop, seed)
