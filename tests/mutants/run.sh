#!/bin/sh
# Breaks one line after the other, in a copy, and shows that the simulation notices each: a run that passes with a broken line proves nothing.
# SEEDS=a..b chooses the seeds (default 0..1000). Fails if a broken line goes unnoticed, and before that if a seed fails with no line broken.
set -eu
cd "$(dirname "$0")/../.."
here=$(pwd)
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$here/target}"
export SEEDS="${SEEDS:-0..1000}"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git clone --quiet --shared . "$copy"
cd "$copy"
# One test of the agent and one of the query beside the simulation, so that what is below our crates is the same as in a whole build, and is not
# built again. Our own crates are built under other names: the next build of the tree itself must not find those with a broken line.
build() {
    cargo test --workspace --locked --config profile.dev.package.plimsoll-schemas.debug=false --test sim --test sql --test publish "$@"
}
# Whether every seed passes. Anything else than seeds that fail is no answer.
simulate() {
    build --no-run --quiet 2>"$copy/built" || { cat "$copy/built"; exit 1; }
    build --quiet -- whatever_breaks --nocapture >"$copy/said" 2>&1 && return
    grep -q 'seeds failed' "$copy/said" || { cat "$copy/said"; exit 1; }
    return 1
}

simulate || { cat "$copy/said"; echo "the simulation fails with no line broken"; exit 1; }
unnoticed=0
for patch in tests/mutants/*.patch; do
    name=$(basename "$patch" .patch)
    git apply "$patch"
    if simulate; then
        echo "$name: NOT NOTICED"
        unnoticed=1
    else
        echo "$name: noticed: $(grep -m1 'seeds failed' "$copy/said")"
        grep -A1 -m1 '^SEED=' "$copy/said" | cut -c1-240 | sed 's/^/    /'
    fi
    git apply --reverse "$patch"
done
exit $unnoticed
