#!/usr/bin/env bash
# Train a large GPT on codes, sharded: --cloud-save-path DIR --code-path DIR --image-size 384 --gpt-model GPT-XXL
source "$(dirname "$0")/../launch.sh"
launch autoregressive/train/train_c2i_fsdp.py "$@"
