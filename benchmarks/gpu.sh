#!/usr/bin/env bash
# All checks, trainings and measurements that wait for a GPU, in one run.
#
#   OUT=results bash benchmarks/gpu.sh              # on a machine with a GPU
#   OUT=/tmp/dry DRY_RUN=1 bash benchmarks/gpu.sh   # the same steps, tiny, on the CPU
#
# DATA is the folder of development data (flickr8k/, web_pairs/). Every step writes a log to $OUT; a
# step that fails is reported at the end and does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?set OUT to the folder for results}
PYTHON=${PYTHON:-python3}
DATA=${DATA:-${COTS_SHARED_DATA:-../shared/data}}
DRY_RUN=${DRY_RUN:-0}
DEVICE=cuda
[[ $DRY_RUN == 1 ]] && DEVICE=cpu
export PYTHONPATH=$PWD
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
failed=()

step() {
  local name=$1
  shift
  echo "== $name: $*" | tee "$OUT/$name.log"
  local started=$SECONDS
  if "$@" >>"$OUT/$name.log" 2>&1; then
    echo "   done in $((SECONDS - started)) s"
  else
    echo "   FAILED with $? after $((SECONDS - started)) s; see $name.log"
    failed+=("$name")
  fi
}

cots() { "$PYTHON" -m cots_cli.main "$@"; }

{
  date -u +%Y-%m-%dT%H:%M:%SZ
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null
  "$PYTHON" -c 'import platform, torch; print(platform.python_version(), torch.__version__)'
} | tee "$OUT/machine.txt"

# 1. The default checkpoint, trained end to end: no frozen part, fresh crops in every epoch.
size=(epochs=20 batch_size=128 data.num_workers=12)
tokenizer_size=(epochs=30)
bench_size=(batch_size=256 data.num_workers=12 --runs 40)
evaluate=$DATA/flickr8k/val-00000.tar
train="[$DATA/flickr8k/train-{00000..00002}.tar, $DATA/web_pairs/*.tar]"
if [[ $DRY_RUN == 1 ]]; then
  size=(epochs=1 batch_size=16)
  tokenizer_size=(epochs=1)
  bench_size=(batch_size=16 --runs 1)
  "$PYTHON" - "$evaluate" "$OUT/tiny.tar" <<'PYTHON_END'
import itertools, sys, tarfile
with tarfile.open(sys.argv[1]) as whole, tarfile.open(sys.argv[2], "w") as tiny:
    for member in itertools.islice(whole, 2 * 48):  # a picture and its captions each
        tiny.addfile(member, whole.extractfile(member))
PYTHON_END
  evaluate=$OUT/tiny.tar
  train="[$evaluate]"
fi
step train_mini cots train pretrain --config training/configs/cots-mini-contrast.yaml \
  freeze_image=false regression.when=never \
  "optimiser.lr_scale={image_projection: 20, text_projection: 20}" \
  "device=$DEVICE" "output=$OUT/cots-mini" \
  "data.train=$train" "data.evaluate=[$evaluate]" "data.cache_dir=$OUT/cache" "${size[@]}"
step evaluate_mini cots evaluate --data "$evaluate" --checkpoint "$OUT/cots-mini" \
  --device "$DEVICE" --json
step evaluate_bundled cots evaluate --data "$evaluate" --device "$DEVICE" --json

# 2. All of COTS on an image tower that is trained: the image tokenizer, then the rows of Table 3.
step train_tokenizer cots train tokenizer --config training/configs/tokenizer_mini_112.yaml \
  "device=$DEVICE" "output=$OUT/tokenizer" "data.train=$train" "data.evaluate=[$evaluate]" \
  "${tokenizer_size[@]}"
seeds=(--seed 0 --seed 1 --seed 2)
[[ $DRY_RUN == 1 ]] && seeds=(--seed 0)
rows=("device=$DEVICE" "data.train=$train" "data.evaluate=[$evaluate]"
  "data.cache_dir=$OUT/cache" "objective.vision.tokenizer=$OUT/tokenizer" "evaluate_every=100"
  engine.save_every=1000000 engine.keep_states=1 "${size[@]}")
step table3 "$PYTHON" benchmarks/table3.py --output "$OUT/table3" "${seeds[@]}" "${rows[@]}"
start=checkpoint:$OUT/table3/start
for name in pretrain_mini ablation_mini/instance; do
  step "bench_${name//\//_}" cots bench train --config "training/configs/$name.yaml" --out "$OUT" \
    "device=$DEVICE" "data.train=$train" "objective.vision.tokenizer=$OUT/tokenizer" \
    "init.image=$start" "init.text=$start" "${bench_size[@]}"
done
step filtered cots train pretrain --config training/configs/ablation_mini/full.yaml seed=3 \
  "output=$OUT/filtered" --report-filtered "$OUT/filtered.html" "${rows[@]}" \
  "init.image=$start" "init.text=$start"

# 3. Building and searching a gallery on the GPU.
step index cots index build "$evaluate" --gallery "$OUT/gallery" --device "$DEVICE" --json
step search cots search --gallery "$OUT/gallery" "a dog runs through snow" --json
step bench cots bench query --out "$OUT"

# 4. The tests, where CUDA is visible.
[[ $DRY_RUN == 1 ]] || step tests "$PYTHON" -m pytest -q tests/cots_model tests/training

rm -rf "$OUT/cache" "$OUT/gallery" "$OUT"/table3/*/states "$OUT/filtered/states"
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}"
  exit 1
fi
