"""Put the ranks' shards of the update together and hold them against the single process."""

from __future__ import annotations

from typing import Any

import torch

from tests.distributed.sharding import join


def whole_update(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Update of every parameter, from what each rank owns; every value must be owned by somebody."""
    parts: dict[tuple[str, int], torch.Tensor] = {}
    seen: dict[tuple[str, int], torch.Tensor] = {}
    meta: dict[str, dict[str, Any]] = {}
    for rank in ranks:
        for piece in rank["grads"]:
            key = (piece["name"], piece["tp"])
            numel = int(torch.tensor(piece["shape"]).prod())
            place = slice(*piece["range"])
            if piece["tied"] and key in seen and bool(seen[key][place].all()):
                # Both stages of a tied embedding must hold the same sum.
                assert torch.allclose(parts[key][place], piece["values"], rtol=1e-5, atol=1e-8), key
            parts.setdefault(key, torch.zeros(numel))[place] = piece["values"]
            seen.setdefault(key, torch.zeros(numel, dtype=torch.bool))[place] = True
            meta[piece["name"]] = piece
    for key, covered in seen.items():
        assert bool(covered.all()), f"{key}: {int((~covered).sum())} values are owned by no rank"
    whole = {}
    for name, piece in meta.items():
        tp = sorted(rank for n, rank in parts if n == name)
        shards = [parts[name, rank].view(piece["shape"]) for rank in tp]
        if not piece["sharded"]:
            for shard in shards[1:]:
                assert torch.allclose(shard, shards[0], rtol=1e-6, atol=1e-9), f"{name} differs over TP ranks"
        whole[name] = join(shards, name, piece["sharded"], piece["dim"], piece["gated"])
    return whole


def errors(ranks: list[dict[str, Any]], reference: dict[str, Any]) -> dict[str, float]:
    """``||d - d_ref|| / ||J||_F`` of every block of the reference."""
    update = whole_update(ranks)
    missing = set(reference["update"]) ^ set(update)
    assert not missing, f"parameters of one side only: {sorted(missing)}"
    found = {}
    for block, names in reference["members"].items():
        square = sum(float((update[n].double() - reference["update"][n]).square().sum()) for n in names)
        found[block] = square**0.5 / max(reference["norm"][block], 1e-300)
    return found


def gramian_error(ranks: list[dict[str, Any]], reference: dict[str, Any]) -> float:
    """Largest error of a block's Gramian relative to its trace."""
    mine, theirs = ranks[0]["gramians"][-1], reference["gramians"]
    assert ranks[0]["blocks"] == reference["blocks"], (ranks[0]["blocks"], reference["blocks"])
    trace = theirs.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-300)
    return float(((mine - theirs).abs().amax((-1, -2)) / trace).max())
