"""Optimisers: AdamW on float32 masters for networks that compute in a narrower type, Adam for small ones."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gradhat.algorithms.ascend import Step
from gradhat.errors import RunError

CLIP_EPS = 1e-6
"""Keeps the clip's divisor above 0, as torch.nn.utils.clip_grad_norm_ does."""
STATE = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps for each weight: the two moments, and the number of steps as a scalar."""


class MasterAdamW:
    """Gradients are summed in float32, clipped by their global norm, and applied to float32 masters; the
    network's own weights are the masters, rounded.

    Source: Loshchilov and Hutter 2019, algorithm 2. A bfloat16 weight alone would swallow any step below
    1/256 of its size, which at lr 1e-5 is nearly every one. For a network that computes in float32 or wider
    the masters are its own weights. `lr` may be set between steps.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.lr = lr
        self.max_grad_norm = max_grad_norm
        self.weights = dict(module.named_parameters())
        self.wide = {
            name: w.detach().to(torch.promote_types(w.dtype, torch.float32))
            for name, w in self.weights.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.wide.values(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.sums: dict[str, Tensor] = {}
        """The gradient so far: one micro-batch's in the network's type, a sum in the masters'."""
        self.moves = 0
        """How often the weights were moved, or began to be, since this object was made."""

    def accumulate(self) -> None:
        """Add the network's gradient to the sum, and free it."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                grad, before = weight.grad, self.sums.get(name)
                self.sums[name] = grad if before is None else before.to(self.wide[name].dtype).add_(grad)
                weight.grad = None

    def step(self) -> Step:
        """Clip, step, round into the network, clear. A gradient that is not finite changes nothing.

        One weight at a time: the float32 gradient of the whole network never exists.
        """
        wide = torch.float32
        norms = [
            torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, wide)) for g in self.sums.values()
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        skipped = not math.isfinite(norm)
        if not skipped:
            self.moves += 1
            self.optimizer.param_groups[0]["lr"] = self.lr
            scale = (self.max_grad_norm / (norm + CLIP_EPS)).clamp(max=1.0)
            for name, grad in self.sums.items():
                master = self.wide[name]
                master.grad = grad.to(master.dtype) * scale
                self.optimizer.step()
                master.grad = None
            self._round()
        self.sums.clear()
        return Step(float(norm), skipped)

    def masters(self) -> dict[str, Tensor]:
        """Return the masters by parameter name, float32: not copies, they move with the next step."""
        return dict(self.wide)

    def state(self) -> dict[str, Tensor]:
        """Return AdamW's state by names such as "exp_avg.norm.weight": not copies. Empty at first."""
        found = self.optimizer.state
        return {
            f"{key}.{name}": found[w][key] for name, w in self.wide.items() if w in found for key in STATE
        }

    def restore(self, masters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Stand where `masters` and `state` were taken, to the bit, and round the masters into the network.

        RunError for names, shapes or types of another network or optimiser; nothing has changed then.
        """
        _check("weights", self.wide, masters)
        _check("optimiser state", _moments(self.wide) if state else {}, state)
        self.optimizer.state.clear()
        for name, master in self.wide.items():
            master.copy_(masters[name])
            if state:
                self.optimizer.state[master] = {key: state[f"{key}.{name}"].clone() for key in STATE}
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for name, weight in self.weights.items():
            weight.copy_(self.wide[name])


class SmallAdam:
    """Adam for a network of a few thousand weights. Their gradient is clipped by its global norm.

    Source: Kingma and Ba 2015, algorithm 1. `lr` may be set between steps. A gradient that is not finite
    changes nothing.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        eps: float = 1e-5,
        max_grad_norm: float = math.inf,
    ) -> None:
        self.lr = lr
        self.max_grad_norm = max_grad_norm
        self.parameters = list(parameters)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, eps=eps, fused=True)

    def accumulate(self) -> None:
        """The gradient of every micro-batch is summed where it is."""

    def step(self) -> Step:
        """Clip, step, clear."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        skipped = not math.isfinite(norm)
        if not skipped:
            if norm > self.max_grad_norm:
                torch._foreach_mul_(grads, self.max_grad_norm / (norm + CLIP_EPS))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            self.optimizer.param_groups[0]["lr"] = self.lr
            self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        return Step(norm, skipped)

    def state(self) -> dict[str, Tensor]:
        """Return Adam's state by names such as "exp_avg.3": not copies. Empty at first."""
        found = self.optimizer.state
        places = enumerate(self.parameters)
        return {f"{key}.{i}": found[p][key] for i, p in places if p in found for key in STATE}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Stand where `state` was taken, to the bit.

        RunError for names, shapes or types of another network; nothing has changed then.
        """
        moved = {name.rpartition(".")[2] for name in state}
        weights = {str(i): p for i, p in enumerate(self.parameters) if str(i) in moved}
        _check("optimiser state", _moments(weights), state)
        self.optimizer.state.clear()
        for i, parameter in enumerate(self.parameters):
            if f"step.{i}" in state:
                self.optimizer.state[parameter] = {key: state[f"{key}.{i}"].clone() for key in STATE}


def _moments(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names of what AdamW keeps for each weight, of the same shapes and types."""
    step = torch.zeros((), dtype=torch.float32)
    return {f"{key}.{name}": step if key == "step" else w for name, w in weights.items() for key in STATE}


def _check(what: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    def fits(name: str) -> bool:
        if name not in wanted or name not in found:
            return False
        mine, theirs = wanted[name], found[name]
        return mine.shape == theirs.shape and mine.dtype == theirs.dtype

    wrong = sorted(name for name in wanted.keys() | found.keys() if not fits(name))
    if wrong:
        raise RunError(
            f"restore {len(wanted)} tensors of {what}: found {len(found)}, and {len(wrong)} names that are "
            f"missing, unknown, or of another shape or type, such as {wrong[0]}. "
            "Use a checkpoint of this network."
        )
