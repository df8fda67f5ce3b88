#!/usr/bin/env bash
# The comparison that would test the paper's claim: Llama-3-8B on 8 x H100 80 GB, baselines and MOO over paired seeds.
#     MODEL=/models/Meta-Llama-3-8B TEXT=/data/held-out bash examples/paper/run.sh
#     DRY_RUN=1 bash examples/paper/run.sh        # print what it would run
# A run that is complete is not trained again, one that was cut off goes on: call it again after a kill.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

MODEL=${MODEL:-/models/Meta-Llama-3-8B}  # Hugging Face folder
TEXT=${TEXT:-data/held-out}              # aligned held-out text, TAG.jsonl (docs/evaluation.md)
SEEDS=${SEEDS:-"1 2 3 4 5 6"}            # fewer than six pairs have no 95 % interval
RATES=${RATES:-"5.0e-6 1.0e-5 2.0e-5"}   # one grid for every row
TUNING_SEEDS=${TUNING_SEEDS:-"901 902"}
STEPS=${STEPS:-2000}
RUNS=${RUNS:-runs/paper}
# Two manifests with the same training text and different held-out text: the first picks learning rates and the best
# baseline, the second is what `compare` reports.
TUNING=examples/slurm/recipes/languages-8-tuning.yaml
LANGUAGES=examples/slurm/recipes/languages-8.yaml
RECIPE=examples/slurm/recipes/llama-3-8b.yaml
CHECKPOINT=examples/slurm/checkpoints/llama-3-8b

# Row: its flags.
declare -A ROWS=(
    [mean]="--moo-method mean"
    [mixed]="--moo-method mean --moo-mixed"
    [random]="--moo-method random --moo-block model"
    [cagrad-layer]="--moo-method cagrad --moo-option c=0.5 --moo-block layer"
    [cagrad-model]="--moo-method cagrad --moo-option c=0.5 --moo-block model"
    [cagrad-bucket]="--moo-method cagrad --moo-option c=0.5 --moo-block bucket"
)
BASELINES=(mean mixed random)
ORDER=("${BASELINES[@]}" cagrad-layer cagrad-model cagrad-bucket)

call() {
    echo "+ $*"
    [[ -n ${DRY_RUN:-} ]] || "$@"
}

train() {  # row, learning rate, seed, name, manifest, corpus
    # shellcheck disable=SC2086  # a row is several words
    call .venv/bin/megatron-moo train "$RECIPE" ${ROWS[$1]} --lr "$2" --seed "$3" --train-iters "$STEPS" \
        --nproc 8 --save-interval "$STEPS" --run-dir "$RUNS/$4" --languages "$5" --corpus "$RUNS/$6"
}

pick() {  # rows: the best of them and its learning rate, by the tuning runs
    # shellcheck disable=SC2086  # rates and seeds are several words
    .venv/bin/python examples/paper/pick.py "$RUNS" "$@" ${DRY_RUN:+--first} --rates $RATES --seeds $TUNING_SEEDS
}

[[ -n ${DRY_RUN:-} || -d $CHECKPOINT ]] || call .venv/bin/megatron-moo convert import "$MODEL" "$CHECKPOINT"
[[ -n ${DRY_RUN:-} ]] && call .venv/bin/megatron-moo convert import "$MODEL" "$CHECKPOINT"

for row in "${ORDER[@]}"; do
    for rate in $RATES; do
        for seed in $TUNING_SEEDS; do
            train "$row" "$rate" "$seed" "tune-$row-$rate-$seed" "$TUNING" corpus-tuning
        done
    done
    best=$(pick "$row")
    for seed in $SEEDS; do
        train "$row" "${best##* }" "$seed" "$row-$seed" "$LANGUAGES" corpus
        call .venv/bin/megatron-moo eval "$RUNS/$row-$seed" --text "$TEXT" --items 500 --windows 256 \
            --tokenizer "$MODEL"
    done
done

# The primary contrast: cagrad-layer against the baseline that tuning puts first.
reference=$(pick "${BASELINES[@]}")
reference=${reference%% *}
reported=()
for row in "${ORDER[@]}"; do for seed in $SEEDS; do reported+=("$RUNS/$row-$seed"); done; done
call .venv/bin/megatron-moo compare "${reported[@]}" --reference "$reference-${SEEDS%% *}" --out "$RUNS/compare.json"
first=${SEEDS%% *}
call .venv/bin/megatron-moo analyze "$RUNS/$reference-$first" --against "$RUNS/cagrad-layer-$first" --text "$TEXT" \
    --tokenizer "$MODEL" --out "$RUNS/analysis"
