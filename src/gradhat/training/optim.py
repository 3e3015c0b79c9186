"""AdamW on float32 master weights, for a network that computes in a narrower type."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gradhat.algorithms.ascend import Step


class MasterAdamW:
    """Gradients are summed in float32, clipped by their global norm, and applied to float32 masters (Loshchilov and Hutter
    2019, algorithm 2); the network's own weights are the masters, rounded. A bfloat16 weight alone would swallow any step
    below 1/256 of its size, which at lr 1e-5 is nearly every one.

    For a network that computes in float32 the masters are its own weights.
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
            name: w.detach() if w.dtype != torch.bfloat16 else w.detach().float()
            for name, w in self.weights.items()
        }
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.wide.values())}], lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )

    def accumulate(self) -> None:
        """Add the network's gradient to the masters' and clear it."""
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            master = self.wide[name]
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad.add_(weight.grad)
            weight.grad.zero_()

    def step(self) -> Step:
        """Clip, step, round into the network, clear. A gradient that is not finite changes nothing."""
        masters = list(self.wide.values())
        norm = float(nn.utils.clip_grad_norm_(masters, self.max_grad_norm, foreach=True))
        skipped = not math.isfinite(norm)
        if not skipped:
            self.optimizer.param_groups[0]["lr"] = self.lr
            self.optimizer.step()
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self.wide[name])
        for master in masters:
            if master.grad is not None:
                master.grad.zero_()
        return Step(norm, skipped)
