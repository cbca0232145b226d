#!/usr/bin/env bash
# Train a tokenizer: --cloud-save-path DIR --data-path IMAGENET/train --image-size 256 --vq-model VQ-16
source "$(dirname "$0")/../launch.sh"
launch tokenizer/tokenizer_image/vq_train.py "$@"
