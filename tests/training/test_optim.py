"""AdamW on masters, and Adam for small networks, against torch's own and the paper's formula, in every type
and after a restart.
"""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradhat.errors import RunError
from gradhat.training.optim import MasterAdamW, SmallAdam

SETTINGS = {"lr": 3e-3, "betas": (0.8, 0.97), "weight_decay": 0.1}


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Linear(5, 7)
        self.scale = nn.Parameter(torch.ones(7))
        with torch.no_grad():
            for weight in self.parameters():
                # Representable in bfloat16, so that every type starts from the same weights.
                weight.copy_(torch.randn(weight.shape, generator=generator).bfloat16())
        self.to(dtype)


def gradients(step: int, size: float = 1.0) -> dict[str, Tensor]:
    """A gradient for each parameter, representable in bfloat16."""
    generator = torch.Generator().manual_seed(step)
    shapes = {name: w.shape for name, w in Net(torch.float32).named_parameters()}
    return {n: (size * torch.randn(s, generator=generator)).bfloat16().float() for n, s in shapes.items()}


def feed(net: nn.Module, optimizer: MasterAdamW, *parts: dict[str, Tensor]) -> None:
    for part in parts:
        for name, weight in net.named_parameters():
            gradient = part[name].to(weight.dtype)
            # Added in place as autograd does: what was not cleared counts twice.
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        optimizer.accumulate()


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0], ids=["unclipped", "clipped", "clipped hard"])
def test_in_float32_it_is_torchs_adamw_with_clipping_to_the_bit(size: float) -> None:
    net, twin = Net(torch.float32), Net(torch.float32)
    ours = MasterAdamW(net, max_grad_norm=1.0, **SETTINGS)
    theirs = torch.optim.AdamW(twin.parameters(), fused=True, **SETTINGS)
    for step in range(5):
        feed(net, ours, gradients(step, size))
        for name, weight in twin.named_parameters():
            weight.grad = gradients(step, size)[name]
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        theirs.step()
        assert ours.step() == (float(norm), False)
        assert (norm > 1) == (size > 0.01)
        assert_equal(dict(net.named_parameters()), dict(twin.named_parameters()))


def test_it_is_the_formula_of_the_paper() -> None:
    net = Net(torch.float64)
    optimizer = MasterAdamW(net, max_grad_norm=2.0, **SETTINGS)
    weights = snapshot(dict(net.named_parameters()))
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(1, 5):
        feed(net, optimizer, gradients(step))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients(step).values()))
        assert optimizer.step().grad_norm == pytest.approx(norm)
        for name, weight in weights.items():
            gradient = gradients(step)[name].double() * min(1.0, 2.0 / norm)
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.97 * second[name] + 0.03 * gradient**2
            move = (first[name] / (1 - 0.8**step)) / ((second[name] / (1 - 0.97**step)).sqrt() + 1e-8)
            weight -= 3e-3 * (move + 0.1 * weight)
    for name, weight in net.named_parameters():
        torch.testing.assert_close(weight.detach(), weights[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_of_a_narrow_network_follow_a_float32_twin_to_the_bit(
    dtype: torch.dtype, num_parts: int
) -> None:
    narrow, wide = Net(dtype), Net(torch.float32)
    of_narrow, of_wide = MasterAdamW(narrow, **SETTINGS), MasterAdamW(wide, **SETTINGS)
    for step in range(6):
        parts = [
            {n: g.to(dtype).float() for n, g in gradients(10 * step + i).items()} for i in range(num_parts)
        ]
        feed(narrow, of_narrow, *parts)
        feed(wide, of_wide, *parts)
        assert of_narrow.step() == of_wide.step()
        assert_equal(of_narrow.masters(), of_wide.masters())
        assert_equal(of_narrow.state(), of_wide.state())
        assert_equal(
            dict(narrow.named_parameters()), {n: w.detach().to(dtype) for n, w in wide.named_parameters()}
        )


def test_steps_too_small_for_bfloat16_add_up() -> None:
    net = Net(torch.bfloat16)
    optimizer = MasterAdamW(net, lr=1e-6)
    start = snapshot(optimizer.masters())
    before = snapshot(dict(net.named_parameters()))
    for _ in range(50):
        feed(net, optimizer, {name: torch.ones_like(w) for name, w in start.items()})
        optimizer.step()
    # A constant gradient makes each step of AdamW lr long. Near 2 float32 rounds such a step by up to 12 %.
    for name, master in optimizer.masters().items():
        torch.testing.assert_close(start[name] - master, torch.full_like(master, 50e-6), rtol=0.12, atol=0)
    large = start["inner.weight"].abs() > 0.1
    assert torch.equal(net.inner.weight[large], before["inner.weight"][large]), "too small to be seen there"


def test_micro_batches_are_summed_in_float32() -> None:
    net = Net(torch.bfloat16)
    optimizer = MasterAdamW(net, lr=1e-3, max_grad_norm=math.inf)
    ones = {name: torch.ones(w.shape) for name, w in net.named_parameters()}
    # In bfloat16 256 + 1 is 256.
    feed(net, optimizer, {n: 256 * g for n, g in ones.items()}, *[ones] * 8)
    count = sum(g.numel() for g in ones.values())
    assert optimizer.step().grad_norm == pytest.approx(264 * math.sqrt(count), rel=1e-6)


def test_the_next_step_starts_from_no_gradient() -> None:
    net, fresh = Net(torch.float32), Net(torch.float32)
    optimizer = MasterAdamW(net, lr=1e-2, betas=(0.0, 0.0), max_grad_norm=math.inf)
    feed(net, optimizer, gradients(0, 5.0))
    optimizer.step()
    fresh.load_state_dict(net.state_dict())
    other = MasterAdamW(fresh, lr=1e-2, betas=(0.0, 0.0), max_grad_norm=math.inf)
    for module, optim in ((net, optimizer), (fresh, other)):
        feed(module, optim, gradients(1))
        optim.step()
    assert_equal(dict(net.named_parameters()), dict(fresh.named_parameters()))


def test_a_parameter_without_gradient_stays() -> None:
    net = Net(torch.bfloat16)
    optimizer = MasterAdamW(net, **SETTINGS)
    before = snapshot(optimizer.masters())
    net.inner.weight.grad = gradients(0)["inner.weight"].bfloat16()
    optimizer.accumulate()
    optimizer.step()
    moved = {name for name, master in optimizer.masters().items() if not torch.equal(master, before[name])}
    assert moved == {"inner.weight"}


def test_the_learning_rate_can_be_set_between_steps() -> None:
    net = Net(torch.float32)
    optimizer = MasterAdamW(net, lr=1.0)
    for lr in (1e-3, 4e-3):
        before = snapshot(dict(net.named_parameters()))
        optimizer.lr = lr
        feed(net, optimizer, {name: torch.ones_like(w) for name, w in before.items()})
        optimizer.step()
        for name, weight in net.named_parameters():
            torch.testing.assert_close(
                before[name] - weight, torch.full_like(weight, lr), rtol=1e-3, atol=1e-6
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_the_next_step_works(
    bad: float, dtype: torch.dtype
) -> None:
    net, twin = Net(dtype), Net(dtype)
    optimizer, undisturbed = MasterAdamW(net, **SETTINGS), MasterAdamW(twin, **SETTINGS)
    for step in range(3):
        spoilt = gradients(step)
        spoilt["inner.bias"][3] = bad
        before = snapshot({**dict(net.named_parameters()), **optimizer.masters(), **optimizer.state()})
        feed(net, optimizer, gradients(9), spoilt)
        found = optimizer.step()
        assert found.skipped and not math.isfinite(found.grad_norm)
        after = {**dict(net.named_parameters()), **optimizer.masters(), **optimizer.state()}
        assert_equal(snapshot(after), before)
        for module, optim in ((net, optimizer), (twin, undisturbed)):
            feed(module, optim, gradients(step))
            assert not optim.step().skipped
        assert_equal(optimizer.masters(), undisturbed.masters())
    assert_equal(optimizer.state(), undisturbed.state())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_to_the_bit(dtype: torch.dtype, steps: int, tmp_path: Path) -> None:
    net = Net(dtype)
    optimizer = MasterAdamW(net, **SETTINGS)
    for step in range(steps):
        feed(net, optimizer, gradients(step))
        optimizer.step()
    save_file(optimizer.masters(), tmp_path / "masters.safetensors")
    save_file(optimizer.state(), tmp_path / "state.safetensors")

    other = Net(dtype)
    resumed = MasterAdamW(other, **SETTINGS)
    feed(other, resumed, gradients(77))  # A history of its own, to be forgotten.
    resumed.step()
    resumed.restore(load_file(tmp_path / "masters.safetensors"), load_file(tmp_path / "state.safetensors"))
    for step in range(steps, steps + 3):
        assert_equal(resumed.masters(), optimizer.masters())
        assert_equal(resumed.state(), optimizer.state())
        assert_equal(dict(other.named_parameters()), dict(net.named_parameters()))
        for module, optim in ((net, optimizer), (other, resumed)):
            feed(module, optim, gradients(step))
        assert resumed.step() == optimizer.step()


def test_names_of_the_state_and_its_types() -> None:
    net = Net(torch.bfloat16)
    optimizer = MasterAdamW(net, **SETTINGS)
    assert optimizer.state() == {}
    feed(net, optimizer, gradients(0))
    optimizer.step()
    state = optimizer.state()
    names = ("inner.weight", "inner.bias", "scale")
    assert state.keys() == {f"{key}.{name}" for key in ("exp_avg", "exp_avg_sq", "step") for name in names}
    assert all(tensor.dtype == torch.float32 for tensor in [*state.values(), *optimizer.masters().values()])
    assert state["step.scale"].item() == 1


def test_what_was_restored_is_not_shared() -> None:
    net = Net(torch.float32)
    optimizer = MasterAdamW(net, **SETTINGS)
    feed(net, optimizer, gradients(0))
    optimizer.step()
    masters, state = snapshot(optimizer.masters()), snapshot(optimizer.state())
    kept = snapshot(masters), snapshot(state)
    optimizer.restore(masters, state)
    feed(net, optimizer, gradients(1))
    optimizer.step()
    assert_equal(masters, kept[0])
    assert_equal(state, kept[1])


@pytest.mark.parametrize(
    ("which", "name", "change"),
    [
        ("masters", "inner.bias", None),
        ("masters", "inner.bias", torch.zeros(8)),
        ("masters", "unknown", torch.zeros(1)),
        ("masters", "scale", torch.zeros(7, dtype=torch.float16)),
        ("state", "exp_avg.scale", torch.zeros(7, dtype=torch.float16)),
        ("state", "exp_avg_sq.scale", None),
        ("state", "step.scale", torch.zeros(7)),
        ("state", "momentum.scale", torch.zeros(7)),
    ],
)
def test_the_state_of_another_network_is_refused_and_changes_nothing(
    which: str, name: str, change: Tensor | None
) -> None:
    net = Net(torch.float32)
    optimizer = MasterAdamW(net, **SETTINGS)
    feed(net, optimizer, gradients(0))
    optimizer.step()
    given = {"masters": snapshot(optimizer.masters()), "state": snapshot(optimizer.state())}
    for tensors in given.values():
        for tensor in tensors.values():
            tensor.add_(1)
    if change is None:
        del given[which][name]
    else:
        given[which][name] = change
    before = snapshot({**optimizer.masters(), **optimizer.state()})
    with pytest.raises(RunError, match=f"restore .* tensors .*, such as {name}.*Use a checkpoint"):
        optimizer.restore(**given)
    assert_equal(snapshot({**optimizer.masters(), **optimizer.state()}), before)


SMALL = {"lr": 3e-3, "eps": 1e-5}


def push(net: nn.Module, optimizer: SmallAdam, *parts: dict[str, Tensor]) -> None:
    """Add up the gradients of micro-batches where autograd does."""
    for part in parts:
        for name, weight in net.named_parameters():
            gradient = part[name].to(weight.dtype)
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        optimizer.accumulate()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0], ids=["unclipped", "clipped", "clipped hard"])
def test_small_adam_is_torchs_with_clipping(size: float, dtype: torch.dtype) -> None:
    """Two micro-batches a step, and a learning rate that changes."""
    net, twin = Net(dtype), Net(dtype)
    ours = SmallAdam(net.parameters(), max_grad_norm=0.5, **SMALL)
    theirs = torch.optim.Adam(twin.parameters(), **SMALL)
    for step in range(6):
        ours.lr = theirs.param_groups[0]["lr"] = 3e-3 / (step + 1)
        parts = gradients(2 * step, size), gradients(2 * step + 1, size)
        push(net, ours, *parts)
        for name, weight in twin.named_parameters():
            weight.grad = (parts[0][name] + parts[1][name]).to(dtype)
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        theirs.step()
        found = ours.step()
        assert found.grad_norm == pytest.approx(float(norm), rel=1e-6) and not found.skipped
        assert (norm > 0.5) == (size > 0.01)
        for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
            tolerance = 1e-12 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
            assert mine.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_small_adam_is_not_moved_by_a_gradient_that_is_not_finite(bad: float) -> None:
    net, twin = Net(torch.float32), Net(torch.float32)
    optimizer, undisturbed = (SmallAdam(n.parameters(), max_grad_norm=0.5, **SMALL) for n in (net, twin))
    for step in range(3):
        spoilt = gradients(9)
        spoilt["scale"][3] = bad
        push(net, optimizer, spoilt)
        found = optimizer.step()
        assert found.skipped and not math.isfinite(found.grad_norm)
        for module, optim in ((net, optimizer), (twin, undisturbed)):
            push(module, optim, gradients(step))
            assert not optim.step().skipped
    assert_equal(dict(net.named_parameters()), dict(twin.named_parameters()))
    assert_equal(optimizer.state(), undisturbed.state())


def test_small_adam_leaves_a_parameter_without_gradient_where_it_is() -> None:
    """A critic is fitted alone: momentum of the actor must not drag it along."""
    net = Net(torch.float32)
    optimizer = SmallAdam(net.parameters(), **SMALL)
    assert optimizer.step() == (0.0, False)
    push(net, optimizer, gradients(0))
    optimizer.step()
    before = snapshot(dict(net.named_parameters()))
    net.scale.grad = gradients(1)["scale"]
    optimizer.step()
    moved = {name for name, weight in net.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {"scale"}


@pytest.mark.parametrize("steps", [0, 3])
def test_a_restored_small_adam_goes_on_to_the_bit(steps: int, tmp_path: Path) -> None:
    net, other = Net(torch.float32), Net(torch.float32)
    optimizer, resumed = (SmallAdam(n.parameters(), max_grad_norm=0.5, **SMALL) for n in (net, other))
    for step in range(steps):
        push(net, optimizer, gradients(step))
        optimizer.step()
    save_file(optimizer.state(), tmp_path / "state.safetensors")
    push(other, resumed, gradients(77))  # A history of its own, to be forgotten.
    resumed.step()
    other.load_state_dict(net.state_dict())
    kept = load_file(tmp_path / "state.safetensors")
    resumed.restore(kept)
    before = snapshot(kept)
    for step in range(steps, steps + 3):
        for module, optim in ((net, optimizer), (other, resumed)):
            push(module, optim, gradients(step))
        assert resumed.step() == optimizer.step()
        assert_equal(dict(other.named_parameters()), dict(net.named_parameters()))
        assert_equal(resumed.state(), optimizer.state())
    assert_equal(kept, before)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("exp_avg.0", torch.float16),
        ("step.1", torch.float64),
        ("exp_avg_sq.1", 8),
        ("exp_avg.0", None),
        ("step.9", 1),
    ],
)
def test_the_small_adam_of_another_network_is_refused_and_changes_nothing(
    name: str, change: torch.dtype | int | None
) -> None:
    net = Net(torch.float32)
    optimizer = SmallAdam(net.parameters(), **SMALL)
    push(net, optimizer, gradients(0))
    optimizer.step()
    before = snapshot(optimizer.state())
    given = {key: tensor + 1 for key, tensor in before.items()}
    if change is None:
        del given[name]
    else:
        given[name] = torch.zeros(change) if isinstance(change, int) else given[name].to(change)
    with pytest.raises(RunError, match=f"restore .* tensors .*, such as {name}.*Use a checkpoint"):
        optimizer.restore(given)
    assert_equal(snapshot(optimizer.state()), before)
