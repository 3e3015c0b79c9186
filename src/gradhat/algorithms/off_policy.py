"""What DQN, DDPG, TD3 and SAC share: critics fitted to targets, networks that lag behind, a state to save.

The state of an algorithm is a dataclass of networks, parameters, optimisers, generators and counts, and of
nothing else that changes: `tensors` and `load` read it field by field.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from gradhat.errors import RunError
from gradhat.losses import value
from gradhat.policies.continuous import ContinuousQ
from gradhat.trajectories import Transitions

Module = TypeVar("Module", bound=nn.Module)


class Update(NamedTuple):
    """What one gradient step leaves behind."""

    metrics: dict[str, Tensor]
    """Numbers as tensors without axes: reading one waits for the device, so they are read when logged."""
    td_errors: Tensor
    """`[B]`: how wrong Q was about each transition before the step; what a prioritised replay wants back."""


def twin(module: Module) -> Module:
    """Return a copy that no gradient reaches: a target network, to be moved by `follow`."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move every parameter: θ′ ← (1 − τ) θ′ + τ θ. With τ = 1 that is a copy, to the bit.

    Source: Lillicrap et al. 2016, algorithm 1; the copy is Mnih et al. 2015.
    """
    lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    lerp(tuple(target.parameters()), tuple(online.parameters()), tau)


def adam(*modules: nn.Module | nn.Parameter, lr: float) -> Adam:
    """Return one Adam for the parameters of all `modules`, in one kernel for all of them."""
    parameters = [p for m in modules for p in ([m] if isinstance(m, nn.Parameter) else m.parameters())]
    return Adam(parameters, lr=lr, fused=True)


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """Take one step down `loss`. No parameter but the optimiser's own gets a gradient."""
    parameters = optimizer.param_groups[0]["params"]
    loss.backward(inputs=parameters)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def fit(critics: ContinuousQ, optimizer: Optimizer, batch: Transitions, targets: Tensor) -> Update:
    """Move every critic towards `targets` `[B]`: minimise Σ_c mean_B w (Q_c(s, a) − y)² / 2.

    w undoes a prioritised draw. The TD error of a transition is the mean of |y − Q_c| over critics.
    """
    q = critics(batch.observations, batch.actions)
    loss = (value.squared(q, targets.expand_as(q)) * batch.weights).mean(1).sum()
    descend(optimizer, loss)
    with torch.no_grad():
        td_errors = (targets - q).abs().mean(0)
        metrics = {"diagnostics/value_loss": loss.detach(), "q": q.mean(), "td_error": td_errors.mean()}
    return Update(metrics, td_errors)


def tensors(state: Any) -> dict[str, Tensor]:
    """Return a copy of everything in `state` that changes, by name: what `load` needs to go on to the bit."""
    return {
        f"{name}.{key}" if key else name: tensor.detach().clone()
        for name, part in vars(state).items()
        for key, tensor in _contents(part).items()
    }


def coming_bytes(state: Any) -> int:
    """Return how many bytes `tensors` gains when its optimisers take their first step: Adam makes its two
    moments of a parameter then.
    """
    waiting = [part for part in vars(state).values() if isinstance(part, Optimizer) and not part.state]
    parameters = [p for optimizer in waiting for p in optimizer.param_groups[0]["params"]]
    return 2 * sum(p.numel() * p.itemsize for p in parameters)


def load(state: Any, saved: Mapping[str, Tensor]) -> None:
    """Put what `tensors` returned into a state made by `init` with the same settings.

    Raises RunError for names and shapes that differ from those of `state`: other settings, another world.
    """
    _check(state, saved)
    for name, part in vars(state).items():
        mine = {k.partition(".")[2]: v.clone() for k, v in saved.items() if k.partition(".")[0] == name}
        match part:
            case nn.Module():
                part.load_state_dict(mine)
            case Optimizer():
                _load_moments(part, mine)
            case torch.Generator():
                part.set_state(mine[""])
            case Tensor():
                part.data.copy_(mine[""])
            case int():
                setattr(state, name, int(mine[""]))
            case _:
                pass


def _contents(part: Any) -> Mapping[str, Tensor]:
    match part:
        case nn.Module():
            return part.state_dict()
        case Optimizer():
            parameters = part.param_groups[0]["params"]
            return {f"{i}.{k}": t for i, p in enumerate(parameters) for k, t in part.state.get(p, {}).items()}
        case torch.Generator():
            return {"": part.get_state()}
        case Tensor():
            return {"": part}
        case int():
            return {"": torch.tensor(part)}
        case _:
            return {}


def _load_moments(optimizer: Optimizer, saved: Mapping[str, Tensor]) -> None:
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        mine = {k.partition(".")[2]: t for k, t in saved.items() if k.partition(".")[0] == str(i)}
        # None before the first step: Adam makes them then.
        optimizer.state.pop(parameter, None)
        if mine:
            optimizer.state[parameter] = mine


def _check(state: Any, saved: Mapping[str, Tensor]) -> None:
    """An optimiser may have no moments of a parameter, here or there: it makes them at its first step."""
    optimizers = {name: part for name, part in vars(state).items() if isinstance(part, Optimizer)}
    theirs = {name: tuple(t.shape) for name, t in saved.items()}
    mine = {name: tuple(t.shape) for name, t in tensors(state).items()}
    mine = {name: shape for name, shape in mine.items() if name.partition(".")[0] not in optimizers}
    for name, optimizer in optimizers.items():
        for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
            if any(key.startswith(f"{name}.{i}.") for key in saved):
                shape = tuple(parameter.shape)
                wanted = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
                mine |= {f"{name}.{i}.{key}": shape for key, shape in wanted.items()}
    wrong = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if wrong:
        raise RunError(
            f"load the state of an algorithm: {wrong[0]} is {theirs.get(wrong[0], 'missing')} in what was "
            f"saved and {mine.get(wrong[0], 'missing')} here ({len(wrong)} such differences). Make the state "
            "with the settings and the environment of the run that saved it."
        )
