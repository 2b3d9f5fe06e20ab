#!/bin/sh
# From a gpt-oss checkpoint to a fused artifact that runs, with the command line alone. `make demo` runs it.
set -eu
cd "$(dirname "$0")/.."
rm -rf demo && mkdir demo

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

# One layer of gpt-oss-20b: hidden and intermediate size 2880, 32 experts, 4 of them a token.
say python examples/make_checkpoint.py demo/checkpoint --layers 1 --hidden 2880 --intermediate 2880 --experts 32 --topk 4
say moeloom compile demo/checkpoint -o demo/layer.moel --target cpu --require-fusion 2
say moeloom inspect demo/layer.moel --tokens 16
say moeloom run demo/layer.moel --tokens 16
say moeloom check demo/layer.moel --tokens 16
say moeloom bench demo/layer.moel --tokens 1,16 --fusion --no-peers
