"""The test matrix: layout x method x block x slots, as data. ``docs/layouts.md`` is generated from its results."""

from __future__ import annotations

from tests.distributed.case import STILL, Case

OVERLAP = ("--overlap-grad-reduce",)
SMALL_BUCKETS = (*OVERLAP, "--ddp-bucket-size", "4000")
GATHER = ("--overlap-param-gather", *STILL)
SEQUENCE = ("--sequence-parallel",)
UNTIED = ("--untie-embeddings-and-output-weights",)
QK_NORM = ("--qk-layernorm",)
LAYER_NORM = ("--normalization", "LayerNorm")
PER_MICRO_BATCH = ("--mean-per-micro-batch",)
MOE = (
    "--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "24",
    "--moe-token-dispatcher-type", "alltoall", "--moe-router-load-balancing-type", "none",
)  # fmt: skip
# Softmax over all experts before the top-k, as DeepSeek's first models do. Mixtral and Qwen3-MoE route after it.
PRE_SOFTMAX = (*MOE, "--moe-router-pre-softmax")
VIRTUAL = ("--num-layers-per-virtual-pipeline-stage", "1")
TWO_INSTANCES = ("--num-distributed-optimizer-instances", "2")
RECOMPUTE = (
    "--recompute-granularity",
    "full",
    "--recompute-method",
    "uniform",
    "--recompute-num-layers",
    "1",
)
LORA = ("--lora-rank", "4", "--lora-alpha", "8")
FROZEN_EMBEDDING = ("--freeze", "embedding")

CASES: tuple[Case, ...] = (
    # Data parallelism, slots, accumulation.
    Case("one process, 2 slots", dp=1, slots=2, method="mgda"),
    Case("one process, 4 slots", dp=1, slots=4, objectives=4, method="cagrad"),
    Case("dp 2", dp=2, method="cagrad"),
    Case("dp 2, overlap, small buckets", dp=2, method="pcgrad", flags=SMALL_BUCKETS),
    Case("dp 2, 2 slots", dp=2, slots=2, objectives=4, method="cagrad", flags=OVERLAP),
    Case("dp 2, 2 slots, overlapped gather, step 2", dp=2, slots=2, objectives=4, steps=2, method="cagrad",
         flags=(*SMALL_BUCKETS, *GATHER)),
    Case("dp 2, 2 slots, bf16 rows", dp=2, slots=2, objectives=4, rows="bf16", method="cagrad", tolerance=5e-3),
    Case("dp 2, 2 slots, 3 objectives", dp=2, slots=2, objectives=3, method="mgda"),
    Case("dp 4", dp=4, objectives=4, method="cagrad", flags=OVERLAP),
    Case("dp 4, 2 objectives, accumulation", dp=4, micro_batches=2, method="mgda"),
    Case("4 objectives take turns on 2 lanes", dp=2, objectives=4, method="cagrad", flags=OVERLAP),
    Case("dp 8", dp=8, objectives=8, method="cagrad", flags=SMALL_BUCKETS),
    Case("dp 2, mean per micro-batch", dp=2, slots=2, objectives=3, micro_batches=2, flags=PER_MICRO_BATCH),
    Case("dp 2, recomputation", dp=2, flags=RECOMPUTE),
    Case("dp 2, 2 slots, bf16 parameters", dp=2, slots=2, objectives=4, method="cagrad", flags=(*OVERLAP, "--bf16")),
    Case("dp 2, bf16 parameters, accumulation", dp=2, micro_batches=2, method="mgda", flags=(*UNTIED, "--bf16")),
    # Repeated passes in place of kept rows.
    Case("one process, 4 slots, recompute 1", dp=1, slots=4, objectives=4, recompute=1, method="cagrad"),
    Case("one process, 4 slots, recompute 2", dp=1, slots=4, objectives=3, recompute=2, method="mgda"),
    Case("dp 2, 3 slots, recompute", dp=2, slots=3, objectives=5, recompute=1, method="cagrad", flags=SMALL_BUCKETS),
    Case("dp 2, 3 slots, recompute, bf16 rows", dp=2, slots=3, objectives=6, recompute=1, rows="bf16",
         method="cagrad", tolerance=5e-3),
    Case("dp 2, 3 slots, recompute, per micro-batch", dp=2, slots=3, objectives=4, micro_batches=2, recompute=1,
         flags=PER_MICRO_BATCH),
    Case("tp 2, sp, 3 slots, recompute", dp=2, tp=2, slots=3, objectives=6, recompute=1, method="cagrad",
         flags=SEQUENCE),
    Case("pp 2, tied, 3 slots, recompute", dp=2, pp=2, slots=3, objectives=6, micro_batches=2, recompute=1,
         method="cagrad", flags=OVERLAP),
    Case("pp 2, interleaved, 3 slots, recompute", dp=2, pp=2, layers=4, slots=3, objectives=6, micro_batches=2,
         recompute=1, flags=VIRTUAL),
    Case("cp 2, 3 slots, recompute", dp=2, cp=2, slots=3, objectives=6, recompute=1, method="mgda"),
    Case("moe, ep 2, 3 slots, recompute", dp=4, ep=2, slots=3, objectives=6, recompute=1, method="cagrad", flags=MOE),
    Case("two instances, 3 slots, recompute", dp=4, slots=3, objectives=6, recompute=1, method="cagrad",
         flags=TWO_INSTANCES),
    # Blocks.
    Case("block model", dp=2, block="model", method="cagrad", flags=OVERLAP),
    Case("block module", dp=2, block="module", method="mgda"),
    Case("block param", dp=2, block="param", method="pcgrad", flags=SMALL_BUCKETS),
    Case("block param, dp 4", dp=4, objectives=4, block="param", method="cagrad"),
    Case("norms and embeddings excluded", dp=2, exclude="norm|embedding", method="mgda", flags=OVERLAP),
    # Tensor and sequence parallelism.
    Case("tp 2", dp=2, tp=2, method="cagrad"),
    Case("tp 2, sp", dp=2, tp=2, method="mgda", flags=(*SEQUENCE, *OVERLAP)),
    Case("tp 2, sp, LayerNorm", dp=2, tp=2, method="cagrad", flags=(*SEQUENCE, *LAYER_NORM)),
    Case("tp 2, qk norm", dp=2, tp=2, method="mgda", flags=QK_NORM),
    Case("tp 2, sp, qk norm, untied", dp=2, tp=2, method="cagrad", flags=(*SEQUENCE, *QK_NORM, *UNTIED)),
    Case("tp 2, attention sinks, block param", dp=2, tp=2, block="param", method="cagrad",
         flags=("--softmax-type", "learnable")),
    Case("tp 2, sp, block param", dp=2, tp=2, block="param", method="cagrad", flags=SEQUENCE),
    Case("tp 2, sp, block model", dp=2, tp=2, block="model", method="mgda", flags=SEQUENCE),
    Case("tp 2, sp, 2 slots", dp=2, tp=2, slots=2, objectives=4, method="cagrad", flags=SEQUENCE),
    # Pipeline parallelism.
    Case("pp 2, tied", dp=2, pp=2, micro_batches=2, method="cagrad"),
    Case("pp 2, tied, overlap", dp=2, pp=2, micro_batches=2, method="mgda", flags=OVERLAP),
    Case("pp 2, untied", dp=2, pp=2, method="cagrad", flags=(*UNTIED, *OVERLAP)),
    Case("pp 2, tied, 2 slots", dp=2, pp=2, slots=2, objectives=4, micro_batches=2, method="mgda"),
    Case("pp 2, tied, block model", dp=2, pp=2, block="model", method="cagrad"),
    Case("pp 2, interleaved", dp=2, pp=2, layers=4, micro_batches=2, method="cagrad", flags=VIRTUAL),
    Case("pp 2, interleaved, overlap", dp=2, pp=2, layers=4, micro_batches=2, flags=(*VIRTUAL, *OVERLAP)),
    Case("pp 2, interleaved, 2 slots, overlapped gather, step 2", dp=2, pp=2, layers=4, slots=2, objectives=4,
         micro_batches=2, steps=2, method="cagrad", flags=(*VIRTUAL, *OVERLAP, *GATHER)),
    # Context parallelism.
    Case("cp 2", dp=2, cp=2, method="cagrad"),
    Case("cp 2, overlap, 2 slots", dp=2, cp=2, slots=2, objectives=4, method="mgda", flags=OVERLAP),
    Case("cp 2, tp 2, sp", dp=2, cp=2, tp=2, method="cagrad", flags=SEQUENCE),
    Case("cp 2, mean per micro-batch", dp=2, cp=2, ragged=False, method="mgda", flags=PER_MICRO_BATCH),
    # Experts.
    Case("moe, dp 2", dp=2, method="cagrad", flags=MOE),
    Case("moe, ep 2", dp=4, ep=2, method="mgda", flags=MOE),
    Case("qwen3-moe-like, ep 2", dp=4, ep=2, method="cagrad", flags=(*MOE, *QK_NORM, *OVERLAP)),
    Case("mixtral-like, ep 2", dp=4, ep=2, method="cagrad", flags=(*MOE, *UNTIED)),
    Case("moe, pre-softmax, ep 2", dp=4, ep=2, method="cagrad", flags=(*PRE_SOFTMAX, *UNTIED)),
    Case("moe, ep 2, tp 2, sp", dp=2, ep=2, tp=2, slots=2, method="cagrad", flags=(*MOE, *SEQUENCE)),
    Case("moe, ep 2, etp 1, tp 2", dp=2, ep=2, tp=2, method="mgda",
         flags=(*MOE, *SEQUENCE, "--expert-tensor-parallel-size", "1")),
    Case("moe, ep 2, cp 2", dp=2, ep=2, cp=2, method="cagrad", flags=MOE),
    Case("moe, ep 2, block param", dp=4, ep=2, block="param", method="mgda", flags=MOE),
    # Everything together, and several optimizer instances.
    Case("tp 2, pp 2, dp 2, sp", dp=2, tp=2, pp=2, method="cagrad", flags=(*SEQUENCE, *OVERLAP)),
    Case("tp 2, pp 2, dp 2, untied, param", dp=2, tp=2, pp=2, block="param", flags=(*SEQUENCE, *UNTIED)),
    Case("2 instances", dp=4, method="cagrad", flags=(*TWO_INSTANCES, *OVERLAP)),
    Case("2 instances, 2 slots", dp=4, slots=2, objectives=4, method="mgda", flags=TWO_INSTANCES),
    # Adapters only, and frozen parameters.
    Case("lora, dp 2, 2 slots", dp=2, slots=2, objectives=4, method="cagrad", flags=(*LORA, *SMALL_BUCKETS)),
    Case("lora, tp 2", dp=2, tp=2, method="mgda", flags=(*LORA, *OVERLAP)),
    Case("lora, tp 2, sp", dp=2, tp=2, method="cagrad", flags=(*LORA, *SEQUENCE)),
    Case("lora, tp 2, sp, block param", dp=2, tp=2, block="param", method="mgda", flags=(*LORA, *SEQUENCE)),
    Case("lora on linear_fc1, pp 2, tied, recomputation", dp=2, pp=2, method="cagrad",
         flags=(*LORA, "--lora-targets", "linear_fc1", *RECOMPUTE)),
    Case("lora on attention, moe, ep 2", dp=4, ep=2, method="mgda",
         flags=(*LORA, "--lora-targets", "linear_qkv", "linear_proj", *MOE)),
    Case("frozen embedding, dp 2", dp=2, method="cagrad", flags=(*FROZEN_EMBEDDING, *OVERLAP)),
    Case("frozen embedding, pp 2, tied", dp=2, pp=2, method="mgda", flags=FROZEN_EMBEDDING),
)  # fmt: skip

# Which parameters share a bucket is Megatron's choice: the single process is told.
BUCKETS: tuple[Case, ...] = (
    Case("block bucket", dp=2, method="cagrad", block="bucket", flags=SMALL_BUCKETS),
    Case("block bucket, pp 2, untied", dp=2, pp=2, method="mgda", block="bucket", flags=(*SMALL_BUCKETS, *UNTIED)),
)  # fmt: skip

# Promises of other tests: what is held, how, the test.
HELD: tuple[tuple[str, str, str], ...] = (
    ("Every method at DP 1, 2 and 4", "the single process",
     "tests/distributed/test_layouts.py::test_every_method_at_every_data_parallel_size"),
    ("`token` at every layout", "20 steps of Megatron's own training",
     "tests/distributed/test_megatron.py::test_token_is_megatrons_own_training_at_every_layout"),
    ("One bucket", "Megatron's fp32-accumulating reduce-scatter, bitwise",
     "tests/distributed/test_megatron.py::test_sum_of_a_bucket_is_bitwise_megatrons"),
    ("`--moo-every`", "the single process under the weights of the step that solved",
     "tests/distributed/test_modes.py::test_cached_weights_serve_the_next_step"),
    ("`--moo-observe`", "plain Megatron, bitwise; Gramians of the single process",
     "tests/distributed/test_modes.py::test_observing_changes_nothing"),
    ("Clipping and the logged norm", "the update of the single process, scaled",
     "tests/distributed/test_megatron.py::test_gradient_norm_and_clipping"),
    ("Megatron's rerun of a step", "a run without it, bitwise",
     "tests/distributed/test_megatron.py::test_megatrons_rerun_of_a_step_is_the_step"),
    ("A language whose gradient is NaN or infinite", "the single process without that language",
     "tests/distributed/test_bad_gradients.py::test_the_update_is_the_one_without_it"),
    ("Ranks that change places", "1e-6 of the norm of all rows",
     "tests/distributed/test_megatron.py::test_ranks_may_change_places"),
    ("Two runs at one layout", "bitwise", "tests/distributed/test_megatron.py::test_runs_are_bitwise_repeatable"),
    ("Methods that remember", "a resumed run, bitwise",
     "tests/distributed/test_state.py::test_methods_go_on_bitwise"),
    ("A Llama of `transformers`", "torch.autograd on transformers and our solver",
     "tests/distributed/test_transformers.py::test_step_of_a_llama_equals_transformers"),
)  # fmt: skip
