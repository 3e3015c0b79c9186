"""Log-ratios: values by hand, where the gradient goes, and what a masked step may not do."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradhat.estimators import ratios

F64 = torch.float64
Ratio = Callable[[Tensor, Tensor, Tensor], Tensor]
ALL: list[Ratio] = [ratios.on_policy, ratios.token, ratios.sequence]

LOGP = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -0.5, -9.0]], dtype=F64)
OLD = torch.tensor([[-1.5, -1.0, -2.0], [-1.0, -7.0, -8.0]], dtype=F64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)


def test_values_by_hand() -> None:
    assert ratios.on_policy(LOGP, OLD, MASK).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert ratios.token(LOGP, OLD, MASK).tolist() == [[0.5, -1, -2], [-2, 0, 0]]
    assert ratios.sequence(LOGP, OLD, MASK).flatten().tolist() == pytest.approx([-2.5 / 3, -2.0])


def test_the_sequence_ratio_is_the_geometric_mean_of_the_step_ratios() -> None:
    steps = ratios.token(LOGP, OLD, MASK).exp()[0].tolist()
    expected = math.prod(steps) ** (1 / 3)
    assert ratios.sequence(LOGP, OLD, MASK)[0].exp().item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (ratios.on_policy, [[1, 1, 1], [1, 0, 0]]),
        (ratios.token, [[1, 1, 1], [1, 0, 0]]),
        (ratios.sequence, [[1 / 3, 1 / 3, 1 / 3], [1, 0, 0]]),
    ],
)
def test_the_gradient_goes_to_the_own_steps_of_logp_alone(ratio: Ratio, expected: list[list[float]]) -> None:
    logp, old = LOGP.clone().requires_grad_(), OLD.clone().requires_grad_()
    ratio(logp, old, MASK).sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor(expected, dtype=F64))
    assert old.grad is None


@pytest.mark.parametrize("ratio", ALL)
@pytest.mark.parametrize("junk", [math.inf, -math.inf, math.nan, 1e300])
def test_a_masked_step_is_zero_whatever_stands_there(ratio: Ratio, junk: float) -> None:
    dirty = LOGP.clone()
    dirty[1, 1:] = junk
    dirty_old = OLD.clone()
    dirty_old[1, 1:] = -junk
    logp = dirty.requires_grad_()
    found = ratio(logp, dirty_old, MASK)
    assert torch.equal(found, ratio(LOGP, OLD, MASK))
    found.exp().sum().backward()
    assert logp.grad is not None and logp.grad[1, 1:].tolist() == [0.0, 0.0]
    assert logp.grad.isfinite().all()


@pytest.mark.parametrize("ratio", ALL)
def test_a_trajectory_without_steps_has_ratio_one(ratio: Ratio) -> None:
    assert not ratio(LOGP, OLD, torch.zeros_like(MASK)).any()


@pytest.mark.parametrize("ratio", ALL)
def test_mask_may_be_bool_or_zero_one_and_dtype_is_kept(ratio: Ratio) -> None:
    whole = ratio(LOGP, OLD, MASK)
    assert torch.equal(whole, ratio(LOGP, OLD, MASK.float()))
    assert whole.dtype is F64
    assert ratio(LOGP.float(), OLD.float(), MASK).dtype is torch.float32
