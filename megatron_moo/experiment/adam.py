"""AdamW with Megatron's clipping and weight decay, which tells the step that it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_moo.experiment.setting import Setting


class Adam:
    """Args: parameters in place, and the setting's betas, eps, decay (not of vectors) and clipping norm."""

    def __init__(self, params: Sequence[torch.Tensor], setting: Setting) -> None:
        self.params, self.setting, self.count = list(params), setting, 0
        self.m = [torch.zeros_like(param) for param in params]
        self.v = [torch.zeros_like(param) for param in params]

    def metric(self) -> list[torch.Tensor] | None:
        """Square root of 1 / (sqrt(v) + eps) before the step under way; None before the first (all ones)."""
        if self.count == 0:
            return None
        correction = 1.0 - self.setting.beta2**self.count
        return [torch.where(v > 0, ((v / correction).sqrt() + self.setting.eps).rsqrt(), 0.0) for v in self.v]

    @torch.no_grad()
    def step(self, grads: Sequence[torch.Tensor], lr: float) -> list[torch.Tensor]:
        """Apply one step; returns the change of every parameter, weight decay included."""
        s = self.setting
        norm = float(torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt())
        coefficient = min(1.0, s.clip / (norm + 1e-6)) if s.clip > 0 else 1.0
        self.count += 1
        first, second = 1.0 - s.beta1**self.count, 1.0 - s.beta2**self.count
        changes = []
        for param, grad, m, v in zip(self.params, grads, self.m, self.v, strict=True):
            grad = grad * coefficient
            m.lerp_(grad, 1.0 - s.beta1)
            v.mul_(s.beta2).addcmul_(grad, grad, value=1.0 - s.beta2)
            change = (m / ((v / second).sqrt_().add_(s.eps))).mul_(-lr / first)
            if param.dim() > 1:
                change.add_(param, alpha=-lr * s.weight_decay)
            param.add_(change)
            changes.append(change)
        return changes
