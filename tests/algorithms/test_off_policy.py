"""What the algorithms with a replay share: saving and loading, lagging copies, whom a gradient reaches."""

import pytest
import torch
from replayed import continuous, seeded
from torch import nn

from gradhat.algorithms import ddpg, off_policy, sac
from gradhat.errors import RunError

LOW, HIGH = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])
SMALL = sac.Settings(hidden=(8,))


def state(settings: sac.Settings = SMALL, num_inputs: int = 3) -> sac.State:
    return sac.init(num_inputs, LOW, HIGH, settings, seeded())


def test_what_is_saved_does_not_change_afterwards() -> None:
    live = state()
    sac.update(live, continuous(8), SMALL)
    saved = off_policy.tensors(live)
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    sac.update(live, continuous(8, seed=1), SMALL)
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    changed = off_policy.tensors(live)
    assert {name for name in kept if torch.equal(changed[name], kept[name])} == set()


def test_a_state_saved_before_its_first_update_loads() -> None:
    fresh, used = state(), state()
    sac.update(used, continuous(8), SMALL)
    off_policy.load(used, off_policy.tensors(fresh))
    for live in (fresh, used):
        sac.update(live, continuous(8, seed=1), SMALL)
    found, expected = off_policy.tensors(used), off_policy.tensors(fresh)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "other", [state(num_inputs=4), state(sac.Settings(hidden=(9,))), state(sac.Settings(hidden=(8, 8)))]
)
def test_a_state_of_other_settings_is_refused(other: sac.State) -> None:
    with pytest.raises(RunError, match=r"load the state of an algorithm: \S+ is .* here \(\d+ such"):
        off_policy.load(other, off_policy.tensors(state()))
    with pytest.raises(RunError, match=r"is missing in what was saved and \(\) here"):
        off_policy.load(other, {k: v for k, v in off_policy.tensors(other).items() if k != "num_updates"})
    used = state()
    sac.update(used, continuous(8), SMALL)
    moment = {"actor_optimizer.0.exp_avg": torch.zeros(99)}
    with pytest.raises(RunError, match=r"actor_optimizer\.0\.exp_avg is \(99,\) in what was saved"):
        off_policy.load(state(), off_policy.tensors(used) | moment)


def test_a_copy_lags_and_gets_no_gradient() -> None:
    online = nn.Linear(2, 2)
    lagging = off_policy.twin(online)
    assert not any(p.requires_grad for p in lagging.parameters())
    online.weight.data += 4
    before = lagging.weight.clone()
    off_policy.follow(lagging, online, 0.25)
    torch.testing.assert_close(lagging.weight, before + 1)
    off_policy.follow(lagging, online, 1.0)
    assert torch.equal(lagging.weight, online.weight)
    assert lagging.weight is not online.weight


def test_a_step_of_the_actor_leaves_no_gradient_on_the_critics() -> None:
    live = ddpg.init(3, LOW, HIGH, ddpg.Settings(hidden=(8,)), seeded())
    before = [p.detach().clone() for p in live.critics.parameters()]
    ddpg.climb(live.actor, live.critics, live.actor_optimizer, torch.ones(4, 3))
    assert all(torch.equal(p, old) for p, old in zip(live.critics.parameters(), before, strict=True))
    assert all(p.grad is None for p in live.critics.parameters())
