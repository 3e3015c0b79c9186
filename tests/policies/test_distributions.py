"""Distributions against torch's own, and their draws against what they say."""

import math

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from gradhat.errors import ModelError
from gradhat.policies.distributions import Gaussian, categorical

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def gaussian(log_std: Tensor, seed: int = 0) -> Gaussian:
    return Gaussian(normal(4, 3, 2, seed=seed), log_std)


def theirs(pi: Gaussian) -> Independent:
    return Independent(Normal(pi.mean, pi.log_std.exp().expand_as(pi.mean)), 1)


LOG_STDS = {"of the state": 0.5 * normal(4, 3, 2, seed=8), "its own": torch.tensor([-0.7, 0.4], dtype=F64)}


def test_a_categorical_is_torchs() -> None:
    logits, other = 3 * normal(4, 3, 5), normal(4, 3, 5, seed=1)
    pi, mu = categorical(logits), categorical(other)
    twin, twin_mu = TorchCategorical(logits=logits), TorchCategorical(logits=other)
    actions = torch.randint(5, (4, 3), generator=generator())
    torch.testing.assert_close(pi.logp(actions), twin.log_prob(actions), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pi.entropy(), twin.entropy(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pi.kl(mu), kl_divergence(twin, twin_mu), rtol=1e-12, atol=1e-12)
    assert torch.equal(pi.mode(), logits.argmax(-1))
    assert pi.logp(actions).dtype == F64


@pytest.mark.parametrize("name", LOG_STDS)
def test_a_gaussian_is_torchs(name: str) -> None:
    pi, mu = gaussian(LOG_STDS[name]), gaussian(LOG_STDS[name].flip(-1) / 2, seed=5)
    actions = normal(4, 3, 2, seed=2)
    torch.testing.assert_close(pi.logp(actions), theirs(pi).log_prob(actions), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pi.entropy(), theirs(pi).entropy(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pi.kl(mu), kl_divergence(theirs(pi), theirs(mu)), rtol=1e-12, atol=1e-12)
    assert torch.equal(pi.mode(), pi.mean)
    assert pi.entropy().shape == pi.kl(mu).shape == (4, 3)


def test_an_action_that_is_never_taken_adds_nothing() -> None:
    logits = torch.tensor([[0.3, -math.inf, 1.2], [0.1, 0.2, -math.inf]], dtype=F64, requires_grad=True)
    pi = categorical(logits)
    left = categorical(torch.tensor([[0.3, 1.2], [0.1, 0.2]], dtype=F64))
    torch.testing.assert_close(pi.entropy(), left.entropy(), rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(pi.entropy().sum(), logits, retain_graph=True)[0]
    assert gradient.isfinite().all() and gradient[0, 1] == 0 and gradient[1, 2] == 0
    mu = categorical(torch.tensor([[1.0, -math.inf, 0.0], [0.0, 0.0, 0.0]], dtype=F64))
    wanted = torch.stack(
        [
            left.kl(categorical(torch.tensor([[1.0, 0.0]], dtype=F64)))[0],
            (left.log_probs[1].exp() * (left.log_probs[1] + math.log(3))).sum(),
        ]
    )
    torch.testing.assert_close(pi.kl(mu), wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(pi.kl(mu).sum(), logits)[0].isfinite().all()
    assert mu.kl(pi)[1].isinf(), "pi never does what mu does"
    assert (pi.sample(generator()) != torch.tensor([1, 2])).all()


def test_a_divergence_from_oneself_is_0_and_flat() -> None:
    logits, mean, log_std = (normal(4, 3).requires_grad_() for _ in range(3))
    for pi, old in (
        (categorical(logits), categorical(logits).detach()),
        (Gaussian(mean, log_std), Gaussian(mean, log_std).detach()),
    ):
        kl = pi.kl(old)  # pyright: ignore
        assert kl.abs().max() < 1e-14
        kl.sum().backward()
    assert all(t.grad is not None and t.grad.abs().max() < 1e-14 for t in (logits, mean, log_std))


def test_the_draws_of_a_categorical_have_its_probabilities() -> None:
    """A chance below 1e-4 would be a wrong sampler; the seed is fixed."""
    logits = torch.tensor([[0.0, 1.0, -2.0, 0.5], [2.0, -1.0, 0.0, -math.inf]], dtype=F64)
    count = 20_000
    pi = categorical(logits.expand(count, 2, 4))
    drawn = pi.sample(generator(1))
    assert drawn.shape == (count, 2) and drawn.dtype == torch.int64
    for i, probs in enumerate(logits.softmax(-1)):
        seen = drawn[:, i].bincount(minlength=4)
        possible = probs > 0
        assert not seen[~possible].any()
        assert chisquare(seen[possible], count * probs[possible].numpy()).pvalue > 1e-4
    together = (4 * drawn[:, 0] + drawn[:, 1]).bincount(minlength=16).reshape(4, 4).double() / count
    apart = logits[0].softmax(-1)[:, None] * logits[1].softmax(-1)
    assert (together - apart).abs().max() < 0.02, "rows are drawn independently"


def test_the_draws_of_a_gaussian_have_its_moments() -> None:
    count = 20_000
    mean = torch.tensor([0.5, -2.0], dtype=F64, requires_grad=True)
    log_std = torch.tensor([-1.0, 0.7], dtype=F64, requires_grad=True)
    drawn = Gaussian(mean.expand(count, 2), log_std).sample(generator(1))
    assert drawn.shape == (count, 2) and drawn.dtype == F64 and not drawn.requires_grad
    z = ((drawn - mean) / log_std.exp()).detach()
    assert all(kstest(z[:, i].numpy(), "norm").pvalue > 1e-4 for i in range(2))
    assert abs(float((z[:, 0] * z[:, 1]).mean())) < 4 / math.sqrt(count), "components are independent"


def test_a_draw_is_a_function_of_the_generator() -> None:
    for pi in (categorical(normal(50, 3)), Gaussian(normal(50, 3), torch.zeros(3, dtype=F64))):
        assert torch.equal(pi.sample(generator(2)), pi.sample(generator(2)))
        assert not torch.equal(pi.sample(generator(2)), pi.sample(generator(3)))


def test_what_is_detached_stays_when_parameters_move() -> None:
    mean, log_std = (torch.nn.Parameter(normal(3, seed=i)) for i in range(2))
    pi = Gaussian(mean * torch.ones(2, 1, dtype=F64), log_std)
    kept = pi.detach()
    before = kept.log_std.clone()
    assert not kept.mean.requires_grad and not kept.log_std.requires_grad
    with torch.no_grad():
        log_std += 1
    assert torch.equal(kept.log_std, before)
    assert not categorical(mean * 2).detach().log_probs.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_policy_that_diverged_says_so(bad: float) -> None:
    logits = torch.tensor([[0.0, 0.0], [bad, 0.0]])
    with pytest.raises(ModelError, match=r"not finite.*diverged; train it with a smaller learning rate"):
        categorical(logits).sample(generator())


def test_another_mistake_of_torchs_is_not_called_a_divergence() -> None:
    with pytest.raises(RuntimeError, match=r"multinomial|categories|size"):
        categorical(torch.zeros(2, 0)).sample(generator())
