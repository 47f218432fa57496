#!/bin/sh
# A kernel judged through files; MY_KERNEL is whatever reads inputs and writes outputs. ctest runs it
# with one of the course's steps for that.
set -e
MY_KERNEL=${MY_KERNEL:-"tilewise run --impl 2b --in inputs --out outputs"}
# [snippet commands]
tilewise gen "fwd b2 s100 h4 d64 causal" --out inputs
$MY_KERNEL # reads inputs/inputs.safetensors, writes outputs/outputs.safetensors: o and, if it has it, lse
tilewise check --in inputs --outputs outputs
# [end commands]
