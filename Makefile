# Two commands matter: `make up` starts the whole pipeline on this machine, `make test` runs every test.
# Both fetch and build everything they need, with the same build, so the second of them starts warm.

TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
# nats-server from PATH goes first; the one `tools` unpacked is the fallback.
export PATH := $(PATH):$(CURDIR)/.tools

.DEFAULT_GOAL := help
.PHONY: help up test test-all sim mutants kills power check bench openb build tools

help:
	@echo "make up      start the whole pipeline here; ARGS='--hosts 4 --gpus 8', see: $(TARGET)/debug/plimsoll up --help"
	@echo "make test    run every test"
	@echo "make test-all the same, and the published placement experiment on every trace"
	@echo "make sim     10,000 simulated runs with every kind of fault; SEEDS=a..b for others, SEED=n for one"
	@echo "make mutants one broken line after the other, each of which the simulation must notice (builds each)"
	@echo "make kills   200 kills of each part and 100 pauses of the processor under load, near an hour; KILLS=n SWAPS=n SEED=n for others"
	@echo "make power   10 power cuts of the broker under each of two settings, and as many damaged stores; CUTS=n SEED=n for others; needs root"
	@echo "make check   formatting, lints and documentation, all without warnings"
	@echo "make bench   benchmarks (release build: takes long the first time)"
	@echo "make openb   the published placement experiment alone; OPENB=folder with its files"

up: build
	@exec "$(TARGET)/debug/plimsoll" up $(ARGS)

test: build
	cargo test --workspace --locked

test-all: export OPENB_ALL := 1
test-all: test

# A filter instead of --test, which would choose other features and build RocksDB again.
sim: build
	SEEDS="$(if $(SEEDS),$(SEEDS),0..10000)" cargo test --workspace --locked -- whatever_breaks --nocapture

mutants: build
	tests/mutants/run.sh

kills: build
	KILLS="$(if $(KILLS),$(KILLS),200)" SWAPS="$(if $(SWAPS),$(SWAPS),100)" cargo test --workspace --locked -- killed_and_paused_at --nocapture

power: build
	CUTS="$(if $(CUTS),$(CUTS),10)" cargo test --workspace --locked -- power --nocapture

# One command for everything, so that all crates share one set of features and nothing is built twice.
build: tools
	cargo build --workspace --all-targets --locked

# Nothing is linked here, so RocksDB's C++ need not be built: its build script is told that the library is there.
check: export ROCKSDB_LIB_DIR := $(CURDIR)
check: export ROCKSDB_STATIC := 1
check: tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

bench: tools
	cargo bench -p plimsoll-bench --locked
	$(MAKE) openb

# The published placement experiment, where its files are.
OPENB := $(if $(OPENB),$(OPENB),../shared/data/openb)
openb:
	@if [ -f "$(OPENB)/openb_node_list_gpu_node.csv" ]; then \
		cargo run --release --locked -p plimsoll-cli -- bench openb --nodes "$(OPENB)/openb_node_list_gpu_node.csv" \
			--pods "$(OPENB)/openb_pod_list_default.csv" --arrivals "$(OPENB)/arrivals_default.bin.gz"; \
	else echo "skipped: no traces in $(OPENB); OPENB=folder names another"; fi

# libclang and a C++ compiler for RocksDB, nats-server for running it. Says nothing where all is there.
tools:
	@deploy/tools/prepare.sh
