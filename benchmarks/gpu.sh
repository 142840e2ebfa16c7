#!/usr/bin/env bash
# All checks, trainings and measurements that wait for a GPU.
#
#   OUT=results bash benchmarks/gpu.sh                # everything, on a machine with a GPU
#   OUT=results bash benchmarks/gpu.sh bench table3   # these stages alone, in this order
#   OUT=/tmp/dry DRY_RUN=1 bash benchmarks/gpu.sh     # the same steps, tiny, on the CPU
#
# Stages: starts (what cots-mini and the rows of Table 3 start from), tokenizers, bench (alone on the card, or
# its figures mean nothing), table3, mini (cots-mini with all levels, then fine-tuned), search, load (a server
# that encodes on the card; needs FastAPI and FAISS), decoding, tests.
# What a stage left in RUNS is not made again, so a machine that is there for minutes can be given
# RUNS/cots-mini-projections, RUNS/ablation-mini and the tokens. DATA is the folder of development data (flickr8k/, web_pairs/, ...); cots-mini's
# configurations name theirs, drawings in shards/ among it (docs/training.md). Every step writes a log
# to $OUT; a step that fails is reported at the end and does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?set OUT to the folder for results}
PYTHON=${PYTHON:-python3}
DATA=${DATA:-${COTS_SHARED_DATA:-../shared/data}}
DRY_RUN=${DRY_RUN:-0}
RUNS=${RUNS:-runs}
SEEDS=${SEEDS:-"0 1 2"}
LIMIT_S=${LIMIT_S:-3600} # of one step
TABLE3_PASSES=${TABLE3_PASSES:-6}
WORKERS=${WORKERS:-$(($(nproc) / 2))}
JOBS=${JOBS:-3}
DEVICE=cuda
[[ $DRY_RUN == 1 ]] && DEVICE=cpu RUNS=$OUT/runs SEEDS=0 WORKERS=0 JOBS=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT" "$RUNS"
OUT=$(cd "$OUT" && pwd)
RUNS=$(cd "$RUNS" && pwd)
failed=$OUT/failed.txt
: >"$failed"

step() {
  local name=$1
  shift
  echo "== $name: $*" >"$OUT/$name.log"
  local started=$SECONDS
  if timeout "$LIMIT_S" "$@" >>"$OUT/$name.log" 2>&1; then
    echo "$name: done in $((SECONDS - started)) s"
  else
    echo "$name: FAILED with $? after $((SECONDS - started)) s; see $name.log"
    echo "$name" >>"$failed"
    return 1
  fi
}

cots=("$PYTHON" -m cots_cli.main --log-level INFO)

{
  date -u +%Y-%m-%dT%H:%M:%SZ
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
  "$PYTHON" -c 'import platform, torch; print(platform.python_version(), torch.__version__)'
} | tee "$OUT/machine.txt"

evaluate=$DATA/flickr8k/val-00000.tar
photos="['$DATA/flickr8k/train-{00000..00002}.tar']"
pairs="['$DATA/flickr8k/train-{00000..00002}.tar', '$DATA/web_pairs/*.tar']"
tiny=()
tokenizer=(data.num_workers="$WORKERS" "device=$DEVICE")
batch=256
steps=20
if [[ $DRY_RUN == 1 ]]; then
  "$PYTHON" - "$evaluate" "$OUT/tiny.tar" <<'PYTHON_END'
import itertools, sys, tarfile
with tarfile.open(sys.argv[1]) as whole, tarfile.open(sys.argv[2], "w") as tiny:
    for member in itertools.islice(whole, 2 * 48):  # a picture and its captions each
        tiny.addfile(member, whole.extractfile(member))
PYTHON_END
  evaluate=$OUT/tiny.tar
  photos="[$evaluate]" pairs="[$evaluate]"
  tiny=("data.train=$photos" "data.evaluate=$photos")
  tokenizer+=(epochs=1 collapse.min_perplexity=1 collapse.min_usage=0)
  batch=16
  steps=1
fi

# Where cots-mini and the rows of Table 3 start.
starts() {
  local both=("device=$DEVICE" "data.cache_dir=$RUNS/cache" "data.evaluate=[]") short=()
  [[ $DRY_RUN == 1 ]] && short=(epochs=1 evaluate_every=1 batch_size=$batch)
  [[ -e $RUNS/cots-mini-contrast/config.json || -e $RUNS/cots-mini-projections/config.json ]] ||
    step start_contrast "${cots[@]}" train pretrain --config training/configs/cots_mini/contrast.yaml \
      "output=$RUNS/cots-mini-contrast" "${both[@]}" "${short[@]}" "${tiny[@]}"
  [[ -e $RUNS/cots-mini-projections/config.json ]] || step start_mini "${cots[@]}" train pretrain \
    --config training/configs/cots_mini/projections.yaml "init.text=checkpoint:$RUNS/cots-mini-contrast" \
    "output=$RUNS/cots-mini-projections" "${both[@]}" "${short[@]}" "${tiny[@]}"
  [[ -e $RUNS/ablation-mini/config.json ]] || step start_table3 "${cots[@]}" train pretrain \
    --config training/configs/ablation_mini/start.yaml "output=$RUNS/ablation-mini" \
    "data.train=$pairs" "${both[@]}"
}

# Tokens of hidden patches, for both models.
tokenizers() {
  local name
  for name in tokenizer_mini tokenizer_mini_112; do
    step "$name" "${cots[@]}" train tokenizer \
      --config "training/configs/$name.yaml" "output=$RUNS/${name//_/-}" "data.train=$photos" \
      "data.evaluate=[]" "${tokenizer[@]}" &
  done
  wait
}

# The paper's model and DALL-E's tokenizer, with random weights.
base() {
  [[ -e $RUNS/base/config.json ]] || step base "$PYTHON" benchmarks/random_base.py "$RUNS/base" "$RUNS/dalle.pt"
}

# Time and memory of steps: the paper's model with random weights (times do not depend on them), small ones.
bench() {
  base || return
  local paper=(--config training/configs/pretrain_cc4m.yaml "init.image=checkpoint:$RUNS/base"
    "init.text=checkpoint:$RUNS/base" data.stream=false "data.evaluate=[]"
    "objective.vision.tokenizer=$RUNS/dalle.pt")
  local small=("init.image=checkpoint:$RUNS/cots-mini-projections"
    "init.text=checkpoint:$RUNS/cots-mini-projections" "objective.vision.tokenizer=$RUNS/tokenizer-mini" --config training/configs/cots_mini/pretrain.yaml)
  local all=("data.train=$pairs" "device=$DEVICE" data.num_workers="$WORKERS" --runs "$steps" --out "$OUT")
  local base_batch=128
  [[ $DRY_RUN == 1 ]] && base_batch=2
  step bench_base "${cots[@]}" bench train "${paper[@]}" batch_size=$base_batch \
    engine.activation_checkpointing=false "${all[@]}"
  step bench_base_compiled "${cots[@]}" bench train "${paper[@]}" batch_size=$base_batch \
    engine.activation_checkpointing=false engine.compile=true "${all[@]}"
  step bench_base_recomputed "${cots[@]}" bench train "${paper[@]}" batch_size=$base_batch "${all[@]}"
  step bench_mini "${cots[@]}" bench train "${small[@]}" batch_size=$batch "${all[@]}"
  step bench_mini_channels_first "${cots[@]}" bench train "${small[@]}" batch_size=$batch \
    engine.channels_last=false "${all[@]}"
  local row=("init.image=checkpoint:$RUNS/ablation-mini" "init.text=checkpoint:$RUNS/ablation-mini"
    "objective.vision.tokenizer=$RUNS/tokenizer-mini-112" data.resident_side=224 batch_size=$batch)
  for name in instance full; do
    step "bench_$name" "${cots[@]}" bench train --config "training/configs/ablation_mini/$name.yaml" "${row[@]}" "${all[@]}"
  done
}

# cots-mini with its vision transformer trained: all levels, then the fine-tuning.
mini() {
  local both=("device=$DEVICE" data.num_workers="$WORKERS" "data.cache_dir=$RUNS/cache"
    batch_size=$batch "${tiny[@]}")
  [[ $DRY_RUN == 1 ]] && both+=(epochs=1 evaluate_every=1)
  local start=$RUNS/cots-mini-projections
  step mini_pretrain "${cots[@]}" train pretrain --config training/configs/cots_mini/pretrain.yaml \
    "init.image=checkpoint:$start" "init.text=checkpoint:$start" \
    "objective.vision.tokenizer=$RUNS/tokenizer-mini" "output=$RUNS/cots-mini" "${both[@]}" &&
    step mini_finetune "${cots[@]}" train finetune --config training/configs/cots_mini/finetune.yaml \
    "init.image=checkpoint:$RUNS/cots-mini" "init.text=checkpoint:$RUNS/cots-mini" \
    "output=$RUNS/cots-mini-finetuned" "${both[@]}" &&
    step mini_evaluate "${cots[@]}" evaluate --data "$evaluate" --checkpoint "$RUNS/cots-mini-finetuned" \
    --device "$DEVICE" --json
}

# The six rows of the paper's Table 3 and one more, in small, and the pairs that the filter drops.
# An epoch passes over the pictures several times: nothing is saved between.
table3() {
  local seeds=() seed
  for seed in $SEEDS; do seeds+=(--seed "$seed"); done
  local passes="repeat: $TABLE3_PASSES"
  local train="[{path: '$DATA/flickr8k/train-{00000..00002}.tar', $passes}, {path: '$DATA/web_pairs/*.tar', $passes}]"
  [[ $DRY_RUN == 1 ]] && train=$pairs
  local rows=("device=$DEVICE" "data.train=$train" "data.evaluate=[$evaluate]" "data.cache_dir=$RUNS/cache"
    data.resident_side=224 objective.vision.mask=random "objective.vision.tokenizer=$RUNS/tokenizer-mini-112"
    engine.save_every=1000000 engine.keep_states=1 batch_size=$batch
    data.num_workers=$((DRY_RUN == 1 ? 0 : 1)))
  local start=$RUNS/ablation-mini
  step table3 "$PYTHON" benchmarks/table3.py --output "$RUNS/table3" --start "$start" --jobs "$JOBS" \
    "${seeds[@]}" "${rows[@]}"
  step table3_copied cp "$RUNS/table3/table3.md" "$OUT/"
  step filtered "${cots[@]}" train pretrain --config training/configs/ablation_mini/full.yaml seed=3 \
    "output=$RUNS/filtered" --report-filtered "$OUT/filtered.html" "${rows[@]}" \
    "init.image=checkpoint:$start" "init.text=checkpoint:$start"
}

# Building and searching a gallery and each kind of index on the GPU, queries one at a time.
search() {
  step index "${cots[@]}" index build "$evaluate" --gallery "$OUT/gallery" --device "$DEVICE" --json
  step search "${cots[@]}" search --gallery "$OUT/gallery" "a dog runs through snow" --json
  step bench_query "${cots[@]}" bench query --out "$OUT"
  rm -rf "$OUT/gallery"
  local sizes=() kinds=flat,ivf,ivfpq,cagra
  [[ $DRY_RUN == 1 ]] && kinds=flat,hnsw,ivf,ivfpq &&
    sizes=(--count 2000 --pictures 60 --captions 40 --target-recall 0.5)
  # the real calls of faiss-gpu beside exact search, files saved for CPUs, and memory that runs out
  step index_gpu "$PYTHON" -m pytest -q -rs tests/index_builder/indexes/test_real_gpu.py
  step index_recall "$PYTHON" benchmarks/index_recall.py --data "$DATA" --device "$DEVICE" \
    --vectors "$RUNS/index_recall.npz" --out "$OUT" --kinds "$kinds" "${sizes[@]}"
}

# Latency and throughput of a server against rate, of cots-mini and of a model of the paper's size.
load() {
  local sizes=(--items 100000 --seconds 10)
  [[ $DRY_RUN == 1 ]] && sizes=(--items 200 --seconds 1 --clients 5 --rate 1 --kind text)
  step load_mini "$PYTHON" -m benchmarks.load sweep --device "$DEVICE" --out "$OUT" "${sizes[@]}"
  base && step load_base "$PYTHON" -m benchmarks.load sweep --device "$DEVICE" --out "$OUT" \
    --checkpoint "$RUNS/base" "${sizes[@]}"
}

# JPEGs decoded on the GPU beside those decoded on the CPU.
decoding() {
  [[ $DRY_RUN == 1 ]] || step decoding env COTS_SHARED_DATA="$DATA" \
    "$PYTHON" -m pytest -q tests/index_builder/pipeline/test_gpu_jpeg.py
}

# The tests, where CUDA is visible.
tests() {
  [[ $DRY_RUN == 1 ]] || step tests "$PYTHON" -m pytest -q -x tests/cots_model tests/training
}

known=(starts tokenizers bench table3 mini search load decoding tests)
stages=("$@")
((${#stages[@]})) || stages=("${known[@]}")
for stage in "${stages[@]}"; do
  [[ " ${known[*]} " == *" $stage "* ]] && continue
  echo "Error: no stage '$stage'; there are: ${known[*]}" >&2
  exit 2
done
for stage in "${stages[@]}"; do "$stage"; done
if [[ -s $failed ]]; then
  echo "failed: $(tr '\n' ' ' <"$failed")"
  exit 1
fi
