"""Whether a provider computes the right thing: every element of every result is held to float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tritonbn import reference

from .cases import Case
from .inputs import EPS, KERAS_EPS, KERAS_MOMENTUM, MOMENTUM, Inputs

MOST_AT_ONCE = 2**24
"""Elements that are held in float64 at once: channels do not depend on each other, nor do Keras' samples."""

SUMS = {torch.float16: 2**-10, torch.bfloat16: 2**-10, torch.float32: 2**-14}
"""Error that sums over all values of a channel in float32 may have, relative to the greatest of them."""

STATISTICS = 2**-16
"""The same for what comes of mean and variance, which are float32."""


@dataclass
class Results:
    """What a provider computed."""

    y: Tensor
    gradients: dict[str, Tensor]
    """By the names of Inputs.leaves; empty unless the case is about them."""
    buffers: dict[str, Tensor]
    """running_mean and running_var after a training call; else empty."""

    def all(self) -> dict[str, Tensor]:
        """By name."""
        return {"y": self.y, **self.gradients, **self.buffers}


def allowed(case: Case, name: str) -> float:
    """The greatest error of a result relative to its greatest value.

    A tensor is rounded to its dtype, where an epilogue is not fused two more times; half an eps each.
    """
    if name in ("y", "dx", "dresidual"):
        return torch.finfo(case.problem.dtype).eps * (2 if case.fused else 1) + STATISTICS
    return STATISTICS if name.startswith("running") else SUMS[case.problem.dtype]


def errors(case: Case, inputs: Inputs, results: Results) -> dict[str, float]:
    """The greatest error of every result, of a tensor relative to its channel's or sample's greatest value.

    nan or infinite where a result is not finite.
    """
    worst: dict[str, float] = {}
    vectors: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    summed: dict[str, Tensor] = {}
    for part, truth, scales, spared in truths(case, inputs, results):
        for name, exact in truth.items():
            found = part(results.all()[name])
            if exact.dim() > 1:
                error = relative(found, exact, 0 if case.keras == 1 else 1, scales.get(name), spared.get(name))
                worst[name] = not_less(worst.get(name, 0.0), error)
            elif case.keras == 1:
                summed[name] = summed.get(name, 0) + exact
            else:
                known = vectors.setdefault(name, ([], []))
                known[0].append(found)
                known[1].append(exact)
    whole = {name: (results.gradients[name], exact) for name, exact in summed.items()}
    whole |= {name: (torch.cat(found), torch.cat(exact)) for name, (found, exact) in vectors.items()}
    return worst | {name: relative(*both) for name, both in whole.items()}


def relative(
    found: Tensor,
    exact: Tensor,
    axis: int | None = None,
    scale: Tensor | None = None,
    spared: Tensor | None = None,
) -> float:
    """The greatest error relative to the greatest value, of `scale` if it is given; along an axis place by place.

    As much of a place's error as `spared` says does not count.
    """
    error, value = (found.double() - exact).abs(), (exact if scale is None else scale).abs()
    if axis is not None:
        others = [d for d in range(exact.dim()) if d != axis]
        error, value = error.amax(others), value.amax(others)
        error = error if spared is None else torch.where(error > spared, error - spared, 0 * error)
        return torch.where(value > 0, error / value, error).max().item()
    greatest = value.max().item()
    return error.max().item() / (greatest or 1.0)


def not_less(a: float, b: float) -> float:
    """The greater one; max() alone would drop a nan."""
    return a if a >= b else b


def truths(
    case: Case, inputs: Inputs, results: Results
) -> Iterator[tuple[Taken, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]]:
    """What all results should be, part by part: how to take a part of a tensor or vector, and its true values.

    And what y's error is relative to if a residual is added: who rounds before that has the error of the greatest of
    both, however much of it cancels. And of which error nobody is free whose mean is float32.
    """
    of_samples = case.keras == 1
    count = inputs.x.shape[0 if of_samples else 1]
    step = max(1, MOST_AT_ONCE * count // inputs.x.numel())
    for start in range(0, count, step):
        taken = Taken(slice(start, start + step), of_samples)
        exact = {name: taken(leaf.detach()).double().requires_grad_() for name, leaf in inputs.leaves.items()}
        found = sample_norm(exact) if of_samples else batch_norm(case, taken, inputs, exact)
        buffers, z = {name: value for name, value in found.items() if name != "z"}, found["z"]
        truth = {"y": z.relu() if case.fused else z, **buffers}
        if results.gradients:
            # relu's slope is that of the y that was returned: where z is nearly 0, either side is right
            dz = taken(inputs.dy).double() * (taken(results.y) > 0 if case.fused else 1)
            gradients = torch.autograd.grad(z, list(exact.values()), dz)
            truth |= dict(zip(exact, gradients, strict=True))
        known = results.all()
        scales = {}
        if case.fused:
            added = exact["dresidual"].detach()
            scales["y"] = torch.maximum((z.detach() - added).abs(), added.abs())
        spared = {} if of_samples or case.direction == "inference" else of_the_mean(case, exact, taken(inputs.dy))
        yield taken, {name: value.detach() for name, value in truth.items() if name in known}, scales, spared


def of_the_mean(case: Case, exact: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    """By how much y and dx of each channel are off where its mean, of the size of its values, is rounded to float32.

    It matters in channels of a few values, which may lie close to each other.
    """
    with torch.no_grad():
        x, dz = exact["dx"], dy.double().abs()
        others = [d for d in range(x.dim()) if d != 1]
        eps = EPS if case.keras is None else KERAS_EPS
        var, mean = torch.var_mean(x, others, correction=0, keepdim=True)
        invstd = (var + eps).rsqrt()
        xhat = ((x - mean) * invstd).abs()
        invstd = invstd.flatten()
        y = exact["dweight"].abs() * torch.finfo(torch.float32).eps * x.abs().amax(others) * invstd
        return {"y": y, "dx": y * invstd * ((dz * xhat).mean(others) + dz.mean(others) * xhat.amax(others))}


@dataclass(frozen=True)
class Taken:
    """Takes the same part of every tensor and vector."""

    part: slice
    of_samples: bool
    """Instead of channels: vectors then are whole."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """Of a vector or a tensor."""
        if tensor.dim() == 1:
            return tensor if self.of_samples else tensor[self.part]
        return tensor[self.part] if self.of_samples else tensor[:, self.part]


def batch_norm(case: Case, taken: Taken, inputs: Inputs, exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """What relu is taken of, and the running buffers afterwards."""
    found = reference.batch_norm(
        exact["dx"],
        taken(inputs.running_mean),
        taken(inputs.running_var),
        exact["dweight"],
        exact["dbias"],
        training=case.direction != "inference",
        momentum=MOMENTUM if case.keras is None else 1 - KERAS_MOMENTUM,
        eps=EPS if case.keras is None else KERAS_EPS,
        correction=1 if case.keras is None else 0,
    )
    z = found.y + exact["dresidual"] if case.fused else found.y
    return {"z": z, "running_mean": found.running_mean, "running_var": found.running_var}


def sample_norm(exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same for Keras' mode 1, which has no buffers."""
    return {"z": reference.sample_norm(exact["dx"], exact["dweight"], exact["dbias"], eps=KERAS_EPS)}
