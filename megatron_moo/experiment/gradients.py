"""Every language's gradient from one backward pass.

    a linear layer   y = x W^T       dL_k/dW = (dL_k/dy)^T x over the samples of language k
    a norm           y = xhat * w    dL_k/dw = sum of dL_k/dy * xhat
    the embedding    rows of dL_k/de added up by token

No sample of one language touches another's activations, so the backward pass of the sum of the languages' losses
holds every dL_k/dy side by side; only the weights' gradients must be kept apart. That costs one pass of Python per step
in place of K, and the same arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch


class GroupGradients:
    """Rows of the Jacobian of a Megatron ``GPTModel`` on one rank: RMSNorm, no biases, no dropout, no adapters.

    Args:
        model: the bare model; its parameters stop requiring gradients.

    Attributes:
        names: parameter names in the order of :meth:`rows`.
        params: the parameters.

    Raises:
        ValueError: for a parameter of a kind that is not known here.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.params = [param for _, param in model.named_parameters()]
        self._model = model
        self._seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._leaf = torch.empty(0)
        self._eps: dict[str, float] = {}
        known = {"embedding.word_embeddings.weight"}
        model.embedding.register_forward_hook(self._embedded)  # type: ignore[union-attr]
        for name, module in model.named_modules():
            kind = type(module).__name__
            if kind in ("ColumnParallelLinear", "RowParallelLinear"):
                module.register_forward_hook(self._watch(name))
            elif (
                kind == "Norm"
                and getattr(module, "rms", False)
                and not getattr(module, "zero_centered", True)
            ):
                self._eps[name] = float(module.eps)
                module.register_forward_hook(self._watch(name))
            else:
                continue
            known.add(f"{name}.weight")
        unknown = [name for name in self.names if name not in known]
        if unknown:
            raise ValueError(f"parameters of a kind that is not known here: {', '.join(unknown)}")
        for param in self.params:
            param.requires_grad_(False)

    def _embedded(self, _module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled():
            return None
        self._leaf = output.detach().requires_grad_(True)
        return self._leaf

    def _watch(self, name: str) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            if not torch.is_grad_enabled():
                return
            x, y = inputs[0].detach(), output[0] if isinstance(output, tuple) else output

            def arrived(grad: torch.Tensor) -> None:
                self._seen[name] = (x, grad.detach())

            y.register_hook(arrived)

        return hook

    def rows(self, batch: dict[str, torch.Tensor], groups: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Gradients of the groups' mean losses.

        Args:
            batch: ``tokens``, ``labels``, ``loss_mask``, ``position_ids`` of ``[groups * m, seq]``; a group is m
                samples in a row.
            groups: how many.

        Returns:
            per parameter ``[groups, *shape]``, and the groups' mean losses ``[groups]``.
        """
        losses = self._model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        mask = batch["loss_mask"]
        sums = (losses.float() * mask).view(groups, -1).sum(1)
        means = sums / mask.view(groups, -1).sum(1).clamp(min=1.0)
        self._seen = {}
        means.sum().backward()
        with torch.no_grad():
            found = [self._row(name, param, batch["tokens"], groups) for name, param in self._named()]
        self._seen = {}
        return found, means.detach()

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return list(zip(self.names, self.params, strict=True))

    def _row(self, name: str, param: torch.Tensor, tokens: torch.Tensor, groups: int) -> torch.Tensor:
        owner = name.removesuffix(".weight")
        if owner == "embedding.word_embeddings":
            rows = self._embedding(param, tokens, groups)
            if "output_layer" in self._seen:  # tied
                rows += self._linear(*self._seen["output_layer"], groups)
            return rows
        x, grad = self._seen[owner]
        if owner in self._eps:
            scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps[owner])
            return (grad * scaled).view(x.shape[0], groups, -1, x.shape[-1]).sum((0, 2))
        return self._linear(x, grad, groups)

    @staticmethod
    def _linear(x: torch.Tensor, grad: torch.Tensor, groups: int) -> torch.Tensor:
        """``x [s, b, in]``, ``grad [s, b, out]`` to ``[groups, out, in]``."""
        return torch.bmm(_by_group(grad, groups).mT, _by_group(x, groups))

    def _embedding(self, param: torch.Tensor, tokens: torch.Tensor, groups: int) -> torch.Tensor:
        grad = self._leaf.grad
        assert grad is not None
        vocab, hidden = param.shape
        which = torch.arange(groups).repeat_interleave(tokens.shape[0] // groups)
        index = (tokens + vocab * which[:, None]).T.reshape(-1)
        rows = grad.new_zeros(groups * vocab, hidden).index_add_(0, index, grad.reshape(-1, hidden))
        return rows.view(groups, vocab, hidden)


def _by_group(x: torch.Tensor, groups: int) -> torch.Tensor:
    """``[s, groups * m, n]`` to ``[groups, s * m, n]``."""
    s, b, n = x.shape
    return x.view(s, groups, b // groups, n).transpose(0, 1).reshape(groups, -1, n)
