"""`gradhat lab mine`: an estimator or a loss of one's own, from a file, under the microscope.

The function names what it needs as its arguments, out of `ARGUMENTS`, and is called once for each batch of G
trajectories. What it returns says what it is:

    [G]           the credit of each trajectory          ĝ = 1/G · Σ_i credit_i Σ_t ∇ log π
    [G, T]        the credit of each step                ĝ = 1/G · Σ_i Σ_t credit_it ∇ log π
    a scalar      a loss that depends on `logp`          ĝ = −∇ loss
"""

import inspect
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradhat.errors import EstimatorError
from gradhat.exact.choices import TUPLES
from gradhat.exact.enumerate import Batch, Draws, Outcomes
from gradhat.exact.moments import Weights, one_by_one
from gradhat.importing import load_file
from gradhat.lab.bias import bias
from gradhat.lab.microscope import Specimen, World, some_draws
from gradhat.lab.report import Report
from gradhat.lab.shelf import of_group
from gradhat.places import home, is_file

ARGUMENTS = {
    "returns": "R(τ) of each trajectory, discounted, [G]",
    "group": "which trajectories were drawn together, [G]",
    "rewards": "[G, T], 0 after the end",
    "mask": "the policy's own steps, bool [G, T]",
    "terminated": "bool [G, T]",
    "truncated": "bool [G, T]",
    "actions": "[G, T]",
    "observations": "[G, T]",
    "logp": "log π under the policy that learns, [G, T], with gradient",
    "logp_old": "log π under the policy that sampled, [G, T]",
}
"""What a function may ask for."""
INSIDE_CLASS = {"actions", "observations", "logp", "logp_old"}
"""Arguments that tell apart trajectories of equal rewards and lengths."""
PROBED = 50
"""At most twice as many batches are tried with their trajectories in another order."""

Own = Callable[..., Any]


def mine(spec: str, world: World, name: str, *, group_size: int) -> Report:
    """Return what the function `FILE.py:NAME` estimates, with known estimators beside it."""
    function = load(spec)
    own = specimen(function, spec, world, group_size)
    return bias({name: world}, {name: [own, *of_group()]}, group_size=group_size)


def load(spec: str) -> Own:
    """Return the function that `FILE.py:NAME` names. EstimatorError when file or function is missing."""
    file, _, name = spec.rpartition(":")
    path = home(file)
    if not name or path.suffix != ".py":
        raise EstimatorError(f"estimator {spec!r}: asked for a function in a file. Write FILE.py:FUNCTION.")
    if not is_file(path):
        raise EstimatorError(f"estimator {spec}: there is no file {path}. Check the path.")
    try:
        module = load_file(path, f"gradhat_estimator_{path.stem}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise EstimatorError(
            f"estimator {spec}: importing {path} raised {_said(error, path)}. Mend it."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise EstimatorError(
            f"estimator {spec}: {path} has no function {name!r}. "
            f"Functions there: {', '.join(there) or 'none'}. Write FILE.py:FUNCTION."
        )
    return found


def specimen(function: Own, spec: str, world: World, group_size: int) -> Specimen:
    """Return the function as a specimen. EstimatorError for arguments that are not in `ARGUMENTS`."""
    wanted = arguments(function, spec)
    by_class = not INSIDE_CLASS & set(wanted)

    def alone(batch: Outcomes) -> Tensor:
        return _weights(function, spec, wanted, batch)

    def weights(batch: Outcomes) -> Tensor:
        return one_by_one(alone)(batch).flatten(0, 1)

    name = spec.rpartition(":")[2]
    plain = Specimen(name, "your own", weights, "group", by_class, one_by_one=True)
    return plain if _symmetric(plain, world, group_size) else replace(plain, listing=TUPLES)


def arguments(function: Own, spec: str) -> list[str]:
    """Return the names of the arguments to pass: all without a default."""
    needed = (p for p in inspect.signature(function).parameters.values() if p.default is p.empty)
    named = [p.name for p in needed if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    unknown = [name for name in named if name not in ARGUMENTS]
    if unknown or not named:
        known = "\n".join(f"    {name:<13} {what}" for name, what in ARGUMENTS.items())
        found = f"the argument {unknown[0]!r}, which is not known" if unknown else "no argument"
        raise EstimatorError(f"estimator {spec}: found {found}. A function may ask for\n{known}")
    return named


def _weights(function: Own, spec: str, wanted: list[str], batch: Outcomes) -> Tensor:
    """Return the weight of every step's score `[G, T]` in one batch."""
    values = {
        "returns": batch.returns(),
        "group": batch.group,
        "rewards": batch.rewards,
        "mask": batch.mask,
        "terminated": batch.terminated,
        "truncated": batch.truncated,
    }
    logp = torch.zeros_like(batch.rewards, requires_grad=True)
    if isinstance(batch, Batch):
        logp = batch.logp.detach().clone().requires_grad_()
        values |= {
            "actions": batch.paths.actions,
            "observations": batch.paths.observations,
            "logp": logp,
            "logp_old": batch.logp_old,
        }
    try:
        answer = function(**{name: values[name].clone() if name != "logp" else logp for name in wanted})
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise EstimatorError(
            f"estimator {spec}: raised {_said(error, Path(spec.rpartition(':')[0]))} on a batch "
            f"of {tuple(logp.shape)}. Mend it."
        ) from error
    return _as_weights(answer, logp, spec)


def _as_weights(answer: Any, logp: Tensor, spec: str) -> Tensor:
    size = len(logp)
    if not isinstance(answer, Tensor) or not answer.is_floating_point():
        raise EstimatorError(f"estimator {spec}: returned {type(answer).__name__}. Return a floating tensor.")
    if not bool(answer.isfinite().all()):
        raise EstimatorError(
            f"estimator {spec}: returned {answer.detach().flatten().tolist()}: asked for finite numbers. "
            "Does it divide by the spread of a batch whose rewards are all equal?"
        )
    if answer.dim() == 0:
        return -_slope(answer, logp, spec)
    if tuple(answer.shape) not in ((size,), tuple(logp.shape)):
        raise EstimatorError(
            f"estimator {spec}: returned {tuple(answer.shape)}. Return the credit of {size} trajectories, "
            f"[{size}], of their steps, {list(logp.shape)}, or a scalar loss."
        )
    credit = answer.detach().double().reshape(size, -1).expand_as(logp)
    return credit / size


def _slope(loss: Tensor, logp: Tensor, spec: str) -> Tensor:
    slope = torch.autograd.grad(loss, logp, allow_unused=True)[0] if loss.requires_grad else None
    if slope is None:
        raise EstimatorError(
            f"estimator {spec}: returned a number that does not depend on logp. A loss takes logp; "
            f"credit has the shape [{len(logp)}] or {list(logp.shape)}."
        )
    if not bool(slope.isfinite().all()):
        raise EstimatorError(
            f"estimator {spec}: returned a loss whose derivative by logp is {slope.flatten().tolist()}: "
            "asked for finite numbers. Does it take a root or a logarithm of 0?"
        )
    return slope


def _symmetric(specimen: Specimen, world: World, group_size: int) -> bool:
    """Whether the function gives a trajectory the same weights wherever it stands in the batch.

    EstimatorError for one that answers differently when it is asked again.
    """
    draws = some_draws(world, num_groups=1, group_size=group_size, one_by_one=True)
    rows = draws.rows[:: max(1, len(draws.rows) // PROBED)]
    straight, first = _probe(specimen.weights, draws, rows), torch.arange(group_size)
    if not torch.equal(_probe(specimen.weights, draws, rows), straight):
        raise EstimatorError(
            f"estimator {specimen.name}: asked twice about the same batches, it gave two answers. An exact "
            "expectation needs a function of the batch: take out what is random, or seed it inside."
        )
    # Every order is made of these two: all move up by one place, the first two change places.
    orders = first.roll(1), torch.cat([first[:2].flip(0), first[2:]])
    return all(
        torch.allclose(_probe(specimen.weights, draws, rows[:, o]), straight[:, o], rtol=1e-9, atol=1e-12)
        for o in orders
    )


def _probe(weights: Weights, draws: Draws, rows: Tensor) -> Tensor:
    """Return the weights `[m, G, T]` of the batches `rows` `[m, G]`."""
    some = replace(draws, rows=rows, probability=draws.probability[: len(rows)])
    return torch.cat([weights(part).reshape(part.num_draws, rows.shape[1], -1) for _, part in some.batches()])


def _said(error: BaseException, file: Path) -> str:
    """Return the error with the last line of `file` that led to it. A syntax error says its line itself."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file.name]
    return f"{type(error).__name__}: {error}" + (f" (line {frames[-1].lineno})" if frames else "")
