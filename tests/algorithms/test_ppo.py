"""PPO: passes and minibatches, the clip, and a first step in which nothing has moved yet."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from onpolicy import Remembers, Sgd, generator, random_batch, random_policy, without_credit
from torch import Tensor
from toy import Recorder

from gradhat.algorithms import a2c, critic
from gradhat.algorithms.ascend import Step
from gradhat.algorithms.ppo import Settings, update
from gradhat.policies.mlp import MLPPolicy
from gradhat.policies.policy import Evaluation
from gradhat.trajectories import Trajectories

ONCE = Settings(num_epochs=1, num_minibatches=1, normalize_adv=False)
F64 = torch.float64


def lesson(policy: MLPPolicy, **sizes: int) -> Trajectories:
    return critic.credit(policy, random_batch(policy, **sizes), gamma=0.9, lam=0.9)


@dataclass(frozen=True)
class Watched(MLPPolicy):
    """Keeps the rewards, which are names, of the rows of every minibatch."""

    seen: list[list[float]] = field(default_factory=list)

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        self.seen.append(trajectories.rewards[:, 0].tolist())
        return super().evaluate(trajectories)


def test_each_own_step_is_learned_from_once_in_each_pass() -> None:
    policy = Watched(random_policy(3, 2).module)
    batch = lesson(policy)
    named = replace(batch, rewards=torch.arange(batch.mask.numel(), dtype=F64).reshape(batch.mask.shape))
    own = named.rewards[named.mask].tolist()
    settings = Settings(num_epochs=3, num_minibatches=4)
    metrics = update(policy, Recorder(policy.module), named, settings, generator())
    assert len(policy.seen) == 12 and metrics["num_epochs"] == 3
    passes = [[name for part in policy.seen[i : i + 4] for name in part] for i in (0, 4, 8)]
    assert all(sorted(one) == own for one in passes)
    assert passes[0] != passes[1] != passes[2] != own
    assert max(map(len, policy.seen)) - min(map(len, policy.seen)) <= 1
    again = Watched(policy.module)
    update(again, Recorder(policy.module), named, settings, generator())
    assert again.seen == policy.seen, "the order is the generator's"


@pytest.mark.parametrize("continuous", [False, True])
def test_at_first_the_ratio_is_1_and_the_divergence_0(continuous: bool) -> None:
    policy = random_policy(3, 2, continuous=continuous)
    batch = lesson(policy)
    one = update(policy, Recorder(policy.module), batch, ONCE, generator())
    assert abs(one["approx_kl"]) < 1e-15 and one["clip_ratio/region_mean"] == 0
    # In several steps `sampling/*` stays that of the first, while the policy moves.
    moved = update(policy, Sgd(policy.module, lr=0.5), batch, Settings(num_epochs=3), generator())
    for metrics in (one, moved):
        assert metrics["sampling/sampling_logp_difference/max"] < 1e-14
        for name in ("min", "mean", "max"):
            assert metrics[f"sampling/importance_sampling_ratio/{name}"] == pytest.approx(1, abs=1e-14)
    assert moved["approx_kl"] > 1e-3


def test_log_probabilities_of_another_policy_are_found_out() -> None:
    policy = random_policy(3, 2)
    batch = lesson(policy)
    stale = replace(batch, logp=batch.logp + 0.01 * batch.mask)
    metrics = update(policy, Recorder(policy.module), stale, ONCE, generator())
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(0.990, abs=1e-3)
    assert metrics["approx_kl"] > 1e-5


@pytest.mark.parametrize("kind", [MLPPolicy, Remembers])
def test_the_first_step_is_that_of_a2c(kind: type[MLPPolicy]) -> None:
    policy = kind(random_policy(3, 2).module)
    batch = lesson(policy)
    numbers = {"value_coef": 0.3, "entropy_coef": 0.2}
    ours, theirs = Recorder(policy.module), Recorder(policy.module)
    update(policy, ours, batch, replace(ONCE, **numbers), generator())
    a2c.update(policy, theirs, batch, a2c.Settings(**numbers))
    for name, gradient in ours.gradient.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradient, theirs.gradient[name], rtol=0, atol=1e-12)


def test_far_from_the_sampler_the_clip_holds_and_metrics_say_so() -> None:
    """Ratios of 0.75, 0.9, 1.25 and 2 at steps of known advantage, against the objective written out."""
    policy = random_policy(3, 2)
    drawn = lesson(policy, rows=4, steps=2)
    batch = replace(drawn, mask=torch.ones_like(drawn.mask), terminated=torch.ones_like(drawn.terminated))
    assert batch.targets is not None
    ratio = torch.tensor([[0.75, 0.75], [0.9, 0.9], [1.25, 1.25], [2.0, 2.0]], dtype=F64)
    adv = torch.tensor([[1.0, -1.0], [2.0, -2.0], [1.5, -0.5], [3.0, -4.0]], dtype=F64)
    with torch.no_grad():
        logp = policy.distribution(batch).logp(batch.actions)
    batch = replace(batch, logp=logp - ratio.log(), adv=adv)
    recorder = Recorder(policy.module)
    settings = replace(ONCE, clip_low=0.2, clip_high=0.3, value_coef=0.0)
    metrics = update(policy, recorder, batch, settings, generator())
    # Held: the bad action at 0.75 and the good one at 2.
    free = torch.tensor([[1, 0], [1, 1], [1, 1], [0, 1]])
    wanted = torch.autograd.grad(
        (policy.distribution(batch).logp(batch.actions) * ratio * adv * free).mean(),
        list(policy.module.actor.parameters()),
    )
    found = [g for name, g in recorder.gradient.items() if name.startswith("actor")]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == pytest.approx(1 / 8)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(2 / 8)
    assert metrics["approx_kl"] == pytest.approx((ratio - 1 - ratio.log()).mean().item(), abs=1e-12)
    values = policy.values(torch.as_tensor(batch.observations)).detach()
    error = (values - torch.as_tensor(batch.targets)).square().mean().item() / 2
    assert metrics["diagnostics/value_loss"] == pytest.approx(error, abs=1e-12)


def test_advantages_are_normalised_over_each_minibatch() -> None:
    policy = random_policy(3, 2)
    batch = lesson(policy)
    shifted = replace(batch, adv=torch.where(batch.mask, 5 * critic.credited(batch)[0] + 3, 0))
    settings = replace(ONCE, num_minibatches=3, normalize_adv=True)
    gradients: list[dict[str, Tensor]] = []
    for some in (batch, shifted):
        recorder = Recorder(policy.module)
        update(policy, recorder, some, settings, generator())
        gradients.append(recorder.gradient)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-6)


def test_passes_end_when_the_policy_has_gone_far_enough() -> None:
    passes: dict[float | None, float] = {}
    for target in (None, 1e-3, 1e6):
        policy = random_policy(3, 2)
        settings = Settings(num_epochs=6, num_minibatches=2, target_kl=target)
        metrics = update(policy, Sgd(policy.module, lr=0.3), lesson(policy), settings, generator())
        passes[target] = metrics["num_epochs"]
    assert passes[None] == passes[1e6] == 6 and 1 <= passes[1e-3] < 6


def test_how_far_is_read_off_the_whole_pass() -> None:
    """The first minibatch of the first pass has not moved yet, the last one has most."""
    policy = random_policy(3, 2)
    batch = lesson(policy)
    settings = Settings(num_epochs=2, num_minibatches=2)

    def passes(target: float) -> float:
        again = random_policy(3, 2)
        far = replace(settings, target_kl=target)
        return update(again, Sgd(again.module, lr=0.5), batch, far, generator())["num_epochs"]

    one = update(policy, Sgd(policy.module, lr=0.5), batch, replace(settings, num_epochs=1), generator())
    mean = one["approx_kl"]
    # Where the pass begins KL is 0, so its last minibatch is at twice the mean.
    assert passes(1.5 * mean) == 2 and passes(0.9 * mean) == 1 and mean > 1e-4


def test_metrics_are_means_over_the_steps() -> None:
    class Counts(Recorder):
        def step(self) -> Step:
            self.events.append("step")
            return Step(float(self.events.count("step")), len(self.events) > 2)

    policy = random_policy(3, 2)
    settings = Settings(num_epochs=2, num_minibatches=2)
    metrics = update(policy, Counts(policy.module), lesson(policy), settings, generator())
    assert metrics["grad_norm"] == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert metrics["skipped"] == pytest.approx(3 / 4)


def test_credit_comes_before_the_update() -> None:
    policy = random_policy(3, 2)
    with pytest.raises(ValueError, match="without credit and targets"):
        update(policy, Recorder(policy.module), without_credit(lesson(policy)), ONCE, generator())
