"""Muon for hidden matrices, AdamW for the rest; learning rates by progress; averaged weights.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) replaces the momentum M of a
matrix by the nearest semi-orthogonal one, U V^T of its singular value decomposition, approximated
by five steps of a quintic Newton-Schulz iteration:

    X = M / |M|;   five times:  G = X X^T,  X = (a + b G + c G^2) X
    W = W - lr * max(1, rows / columns)^0.5 * X

Shapes: N matrices of one shape, R rows, C columns, R <= C.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mnist_transformer.models.base import Model
from mnist_transformer.recipes import Recipe
from mnist_transformer.utils.devices import fast_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(x_NRC: Tensor) -> Tensor:
    """Bring every singular value of each matrix near 1 (about 0.7 to 1.2), R <= C."""
    a, b, c = NEWTON_SCHULZ
    x_NRC = x_NRC / x_NRC.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x_NRC @ x_NRC.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial, x_NRC, beta=a)
    return x_NRC


class Muon(torch.optim.Muon):
    """``torch.optim.Muon`` with matrices of one shape batched, in the device's fast dtype.

    torch's own step goes matrix by matrix and always through bfloat16, which a CPU without
    bfloat16 instructions emulates hundreds of times slower than float32.

    Orthogonalising takes a third of a step on a CPU, yet its result changes slowly. So the
    matrices take turns: each is updated once every ``interval`` steps, at ``interval`` times the
    rate, and accumulates momentum in all steps.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, interval: int) -> None:
        super().__init__(params, lr=lr, weight_decay=0.0)
        self.interval = interval

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for turn, p in enumerate(p for p in group["params"] if p.grad is not None):
                if not (state := self.state[p]):
                    state.update(momentum_buffer=torch.zeros_like(p), step=torch.zeros(()))
                state["step"] += 1
                momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                if (state["step"] + turn) % self.interval == 0:
                    update = p.grad.lerp(momentum, group["momentum"])  # Nesterov
                    wide = update.mT if p.shape[0] > p.shape[1] else update
                    alike[wide.shape].append((p, wide))
            for pairs in alike.values():
                stacked = torch.stack([wide for _, wide in pairs])
                stacked = orthogonalise(stacked.to(fast_dtype(stacked.device)))
                for (p, _), x_RC in zip(pairs, stacked, strict=True):
                    rows, columns = p.shape
                    x = x_RC.mT if rows > columns else x_RC
                    rate = group["lr"] * self.interval * math.sqrt(max(1, rows / columns))
                    p.add_(x.to(p.dtype), alpha=-rate)
        return None


def param_groups(model: Model) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (hidden matrices, the rest).

    A hidden matrix is the weight of an ``nn.Linear`` outside the model's ``adamw_modules``: inputs
    and outputs do not benefit from orthogonal updates.
    """
    excluded = tuple(f"{prefix}." for prefix in model.adamw_modules)
    matrices = {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(excluded)
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trainable if p in matrices], [p for p in trainable if p not in matrices]


def build_optimizers(model: Model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon and AdamW over the model's parameters, at the recipe's peak rates; no weight decay."""
    hidden, rest = param_groups(model)
    # Losses are in nats per dimension, so gradients are small, hence the small epsilon.
    adamw = torch.optim.AdamW(
        rest, lr=recipe.adamw_lr, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0, fused=True
    )
    return [Muon(hidden, recipe.muon_lr, recipe.muon_interval), adamw] if hidden else [adamw]


def schedule(progress: float, warmup: float, decay: float) -> float:
    """Factor on the peak rates at a progress in [0, 1]: up, constant, down to 0, all linear."""
    rising = progress / warmup if warmup > 0 else 1.0
    falling = (1 - progress) / decay if decay > 0 else 1.0
    return max(0.0, min(1.0, rising, falling))


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor


def averaged(model: Model, horizon: float) -> AveragedModel:
    """A copy that averages the weights over about the last ``horizon`` of the updates made so far.

    The decay at update t is 1 - 1 / (1 + horizon t), which suits short and long runs alike
    (arXiv 2312.02696). Buffers are copied, not averaged.
    """

    @torch.no_grad()
    def follow(averages: Any, weights: Any, num_updates: Any) -> None:
        torch._foreach_lerp_(averages, weights, 1 / (1 + horizon * int(num_updates)))

    average = AveragedModel(model, multi_avg_fn=follow)
    average.module.eval().requires_grad_(False)
    return average
