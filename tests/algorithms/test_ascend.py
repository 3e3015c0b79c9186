"""One step of ascent: micro-batch by micro-batch, upwards, with honest metrics."""

import math

import pytest
import torch
from torch import Tensor
from toy import LOGITS, Recorder, Softmax, batch

from gradhat.algorithms.ascend import Step, ascend
from gradhat.policies.policy import Evaluation
from gradhat.trajectories import Trajectories

TABLE = torch.tensor(LOGITS, dtype=torch.float64)


def total_logp(evaluation: Evaluation, part: Trajectories) -> Tensor:
    return evaluation.logp.sum()


def test_every_micro_batch_is_accumulated_before_the_one_step() -> None:
    policy = Softmax(part=2)
    recorder = Recorder(policy.module)
    ascend(policy, recorder, batch((0, 0, 1, 1, 1), (0, 1, 2, 0, 1), TABLE), total_logp)
    assert recorder.events == ["accumulate", "accumulate", "accumulate", "step"]
    assert policy.evaluated == [2, 2, 1]


def test_the_gradient_points_uphill() -> None:
    policy = Softmax()
    recorder = Recorder(policy.module)
    trajectories = batch((0,), (0,), TABLE)
    ascend(policy, recorder, trajectories, total_logp)
    score = torch.zeros_like(TABLE)
    score[0] = torch.tensor([1.0, 0.0]) - TABLE[0].softmax(-1)
    torch.testing.assert_close(recorder.gradient["logits"], score, rtol=0, atol=1e-15)


def test_metrics_by_hand() -> None:
    trajectories = batch((0, 1), (0, 2), TABLE)
    off = torch.tensor([[0.1, 7.0], [-0.3, 0.0]], dtype=torch.float64)  # 7.0 is outside the mask
    policy = Softmax(part=1)
    sampled = Trajectories(**{**vars(trajectories), "logp": trajectories.logp - off})
    metrics = ascend(policy, Recorder(policy.module), sampled, total_logp)
    table = TABLE.log_softmax(-1)
    entropy = -(table.exp() * table).sum(-1)
    assert metrics == pytest.approx(
        {
            "diagnostics/surrogate_loss": -float(trajectories.logp.sum()),
            "entropy": float(entropy[0] + entropy[2] + entropy[3]) / 3,
            "grad_norm": 0.5,
            "skipped": 0.0,
            "sampling/sampling_logp_difference/mean": 0.4 / 3,
            "sampling/sampling_logp_difference/max": 0.3,
            "sampling/importance_sampling_ratio/min": math.exp(-0.3),
            "sampling/importance_sampling_ratio/mean": (math.exp(0.1) + math.exp(-0.3) + 1) / 3,
            "sampling/importance_sampling_ratio/max": math.exp(0.1),
        },
        abs=1e-12,
    )


def test_a_skipped_step_is_reported() -> None:
    class Skips(Recorder):
        def step(self) -> Step:
            return Step(math.inf, True)

    policy = Softmax()
    metrics = ascend(policy, Skips(policy.module), batch((0,), (1,), TABLE), total_logp)
    assert metrics["skipped"] == 1.0 and metrics["grad_norm"] == math.inf
