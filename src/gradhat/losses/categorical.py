"""The loss of a distribution over atoms, to be minimised: distributional values, as in C51."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from gradhat.shapes import check_same


def divergence(log_probs: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Return KL(m ‖ p) = Σ_i m_i (log m_i - log p_i), `[B]` in nats: 0 where p is what it should be.

    `log_probs` are log p of K atoms, normalised, and `target` is m, which counts as data. The gradient in the
    logits of p is p - m, that of the cross-entropy; what is taken off here, the entropy of m, makes the
    number comparable between rows, so that it can rank them.

    Source: Bellemare, Dabney & Munos 2017, section 4.1; as a priority Hessel et al. 2018 (Rainbow). Assumes
    m >= 0 with the sum 1. Failure case: an atom with p = 0 gets no finite loss; log_softmax gives none.
    ValueError for shapes that differ.
    """
    check_same(log_probs=log_probs, target=target)
    return kl_div(log_probs, target.detach(), reduction="none").sum(-1)
