"""Optimisers and the running average used by every stage.

Muon orthogonalises the update of a weight matrix, which at this size learns about twice as fast as Adam. Same-shaped
matrices are stacked so that one batched Newton-Schulz serves all of them: on two cores that halves the optimiser's
share of a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import cos, pi

import torch
from torch import Tensor, nn

from training.runs import fast_dtype


def newton_schulz(stack: Tensor, steps: int = 4) -> Tensor:
    """Orthogonalises each matrix of a stack (n, rows, columns), rows <= columns, approximately; in the
    fastest number format of the processor, which may be bfloat16.

    Source: the quintic iteration of Jordan et al. 2024 (Muon), coefficients 3.4445, -4.7750, 2.0315.
    """
    x = stack.to(fast_dtype() if stack.device.type == "cpu" else torch.bfloat16)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.to(stack.dtype)


class BatchedMuon:
    """Muon with Nesterov momentum over matrices and flattened convolutions; AdamW for everything else.

    matrices: learning rate lr; the rest: lr * rest_scale. Raises nothing; gradients that are None are skipped.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        lr: float,
        rest_scale: float = 0.25,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        self.lr, self.rest_scale, self.momentum, self.weight_decay = lr, rest_scale, momentum, weight_decay
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in matrices:
            groups[(parameter.shape[0], parameter[0].numel())].append(parameter)
        self.groups = list(groups.items())
        self.buffers = [torch.zeros(len(members), *shape) for shape, members in self.groups]
        self.adam = torch.optim.AdamW(list(rest), lr=lr * rest_scale, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, scale: float) -> None:
        """One update at learning rate lr * scale; clears the gradients."""
        for index, (shape, members) in enumerate(self.groups):
            live = [m for m in members if m.grad is not None]
            if len(live) != len(members):
                if not live:
                    continue
                for m in members:
                    if m.grad is None:
                        m.grad = torch.zeros_like(m)
            gradient = torch.stack([m.grad.reshape(shape).float() for m in members])  # type: ignore[union-attr]
            buffer = self.buffers[index] = self.buffers[index].to(gradient.device)
            buffer.lerp_(gradient, 1 - self.momentum)
            update = gradient.lerp_(buffer, self.momentum)
            flip = shape[0] > shape[1]
            update = newton_schulz(update.mT if flip else update)
            update = update.mT if flip else update
            rate = self.lr * scale
            size = max(1.0, shape[0] / shape[1]) ** 0.5
            for member, delta in zip(members, update, strict=True):
                member.data.mul_(1 - rate * self.weight_decay).add_(delta.reshape(member.shape), alpha=-rate * size)
                member.grad = None
        for group in self.adam.param_groups:
            group["lr"] = self.lr * self.rest_scale * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


class Average:
    """Exponential moving average of parameters and buffers: the weights that are kept. Early on it follows faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.values = {name: value.detach().clone().float() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model by one step."""
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 10))
        live = [(self.values[name], value.float()) for name, value in model.state_dict().items()]
        torch._foreach_lerp_([a for a, _ in live], [b for _, b in live], 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Writes the averaged values into a model of the same layout."""
        model.load_state_dict({name: value.to(model.state_dict()[name].dtype) for name, value in self.values.items()})


def cosine(progress: float, floor: float = 0.03, warm: float = 0.03) -> float:
    """Learning-rate factor: linear warm-up over the first part, then cosine down to floor. progress in 0..1."""
    if progress < warm:
        return max(progress / warm, 0.02)
    done = min((progress - warm) / (1 - warm), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + cos(pi * done))
