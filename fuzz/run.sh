#!/usr/bin/env bash
# Builds the fuzz targets with coverage counters (plain cargo and rustc flags: no nightly, no extra
# tool) and runs each of FUZZ_TARGETS for FUZZ_SECONDS. A finding is kept in fuzz/artifacts. Needs a
# C++ compiler.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${FUZZ_SECONDS:-60}
targets=${FUZZ_TARGETS:-frames commands tokens keys headers cookies tap sequencer}
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions"
cargo build --locked --profile fuzz --target "$target" --target-dir ../target/fuzz --bins
[ -z "${BUILD_ONLY:-}" ] || exit 0
for name in $targets; do
  mkdir -p "corpus/$name" artifacts
  # What a stranger's stream looks like is written down: seeds to begin with, words to build from.
  more=("corpus/$name")
  [ ! -d "seeds/$name" ] || more+=("seeds/$name")
  [ ! -f "dictionaries/$name.dict" ] || more+=("-dict=dictionaries/$name.dict")
  echo "fuzz: $name for $seconds s"
  "../target/fuzz/$target/fuzz/$name" -max_total_time="$seconds" -max_len=8192 -timeout=10 \
    -rss_limit_mb=2048 -artifact_prefix="artifacts/$name-" -print_final_stats=1 "${more[@]}" \
    > "artifacts/$name.log" 2>&1 || { tail -30 "artifacts/$name.log"; exit 1; }
  grep -aE "number_of_executed_units|peak_rss|Done" "artifacts/$name.log"
done
