#!/usr/bin/env bash
# Train a GPT on codes: --cloud-save-path DIR --code-path DIR --image-size 384 --gpt-model GPT-B
source "$(dirname "$0")/../launch.sh"
launch autoregressive/train/train_c2i.py "$@"
