"""A team's own Megatron script with Bucket-Level MOO in it: the lines marked MOO are all that it takes.

    torchrun --nproc-per-node 2 examples/own_script/pretrain_own.py MEGATRON_FLAGS

Everything else is what such scripts look like: a model provider, a forward step and a loss of their own.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

import megatron_moo

megatron_moo.prepare()  # only for machines without a GPU

from megatron.core.enums import ModelType  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.training import get_args  # noqa: E402
from megatron.training.argument_utils import (  # noqa: E402
    core_transformer_config_from_args,
    pretrain_cfg_container_from_args,
)
from megatron.training.arguments import parse_and_validate_args  # noqa: E402
from megatron.training.training import pretrain  # noqa: E402

MANIFEST = Path(__file__).resolve().parents[1] / "udhr" / "languages.yaml"


def model_provider(pre_process: bool = True, post_process: bool = True, **kw: Any) -> GPTModel:
    args = get_args()
    config = core_transformer_config_from_args(args)
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization=args.normalization),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
    )


def loss_func(loss_mask: torch.Tensor, losses: torch.Tensor) -> tuple:
    total = (losses.float().view(-1) * loss_mask.view(-1)).sum()
    count = loss_mask.sum().to(torch.int)
    return total, count, {"lm loss": torch.stack([total.detach(), count.float()])}


def forward_step(data_iterator: Any, model: Any) -> tuple:
    batch = next(data_iterator)
    device = torch.cuda.current_device()
    tokens, labels, mask, positions = (
        batch[name].to(device) for name in ("tokens", "labels", "loss_mask", "position_ids")
    )
    return model(tokens, positions, None, labels=labels), partial(loss_func, mask)


def main() -> None:
    args = parse_and_validate_args()
    languages = os.environ.get("LANGUAGES", str(MANIFEST))
    moo = megatron_moo.install(args, languages=languages, moo_method="cagrad")  # MOO
    pretrain(
        pretrain_cfg_container_from_args(args),
        moo.datasets,  # MOO: language-tagged batches
        ModelType.encoder_or_decoder,
        forward_step,
        model_provider=model_provider,
    )


if __name__ == "__main__":
    main()
