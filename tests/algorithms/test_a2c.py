"""A2C: one step, the three terms of its objective and their common denominator."""

from dataclasses import replace

import pytest
import torch
from onpolicy import Remembers, random_batch, random_policy, without_credit
from torch import Tensor
from toy import Recorder

from gradhat.algorithms import critic
from gradhat.algorithms.a2c import Settings, update
from gradhat.policies.mlp import MLPPolicy
from gradhat.trajectories import Trajectories

SETTINGS = Settings(value_coef=0.3, entropy_coef=0.2)


def lesson(policy: MLPPolicy) -> Trajectories:
    return critic.credit(policy, random_batch(policy), gamma=0.9, lam=0.9)


def by_hand(policy: MLPPolicy, batch: Trajectories, adv: Tensor) -> dict[str, Tensor]:
    """The gradient of the mean over own steps, each term written out."""
    assert batch.targets is not None
    own = batch.mask
    pi = policy.distribution(batch)
    logp, entropy = pi.logp(batch.actions)[own], pi.entropy()[own]
    assert isinstance(batch.observations, Tensor)
    error = (policy.values(batch.observations)[own] - batch.targets[own]).square() / 2
    objective = (logp * adv[own] - 0.3 * error + 0.2 * entropy).mean()
    names, weights = zip(*policy.module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(objective, weights), strict=True))


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("kind", [MLPPolicy, Remembers])
def test_the_objective_is_the_mean_of_three_terms_over_own_steps(
    kind: type[MLPPolicy], continuous: bool
) -> None:
    policy = kind(random_policy(3, 2, continuous=continuous).module)
    batch = lesson(policy)
    recorder = Recorder(policy.module)
    update(policy, recorder, batch, SETTINGS)
    assert recorder.events[-1] == "step" and recorder.events.count("step") == 1
    wanted = by_hand(policy, batch, critic.credited(batch)[0])
    assert wanted.keys() == recorder.gradient.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(recorder.gradient[name], gradient, rtol=0, atol=1e-12)


def test_normalised_advantages_are_those_of_the_whole_batch() -> None:
    policy = Remembers(random_policy(3, 2).module)
    batch = lesson(policy)
    recorder = Recorder(policy.module)
    update(policy, recorder, batch, replace(SETTINGS, normalize_adv=True))
    adv = critic.credited(batch)[0]
    own = adv[batch.mask]
    wanted = by_hand(policy, batch, (adv - own.mean()) / own.std(correction=0))
    for name, gradient in wanted.items():
        torch.testing.assert_close(recorder.gradient[name], gradient, rtol=0, atol=1e-6)


def test_metrics_by_hand() -> None:
    policy = random_policy(3, 2)
    batch = lesson(policy)
    metrics = update(policy, Recorder(policy.module), batch, SETTINGS)
    own, (adv, targets) = batch.mask, critic.credited(batch)
    with torch.no_grad():
        entropy = policy.distribution(batch).entropy()[own].mean().item()
        gain = (policy.evaluate(batch).logp * adv)[own].mean().item()
    error = adv[own].square().mean().item() / 2  # before the step, y − V is the advantage
    assert metrics == pytest.approx(
        {
            "diagnostics/surrogate_loss": -(gain - 0.3 * error + 0.2 * entropy),
            "diagnostics/value_loss": error,
            "explained_variance": 1 - (adv[own].var() / targets[own].var()).item(),
            "entropy": entropy,
            "grad_norm": 0.5,
            "skipped": 0.0,
            "sampling/sampling_logp_difference/mean": 0.0,
            "sampling/sampling_logp_difference/max": 0.0,
            "sampling/importance_sampling_ratio/min": 1.0,
            "sampling/importance_sampling_ratio/mean": 1.0,
            "sampling/importance_sampling_ratio/max": 1.0,
        },
        abs=1e-12,
    )


def test_credit_comes_before_the_update() -> None:
    policy = random_policy(3, 2)
    recorder = Recorder(policy.module)
    with pytest.raises(ValueError, match="without credit and targets"):
        update(policy, recorder, without_credit(lesson(policy)), SETTINGS)
    assert recorder.events == []
