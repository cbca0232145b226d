#!/usr/bin/env bash
# Stage 1, pictures of 256 px: --cloud-save-path DIR --data-path LISTS --t5-feat-path FEATURES --gpt-model GPT-XL
source "$(dirname "$0")/../launch.sh"
launch autoregressive/train/train_t2i.py --vq-ckpt pretrained_models/vq_ds16_t2i.pt --dataset t2i --image-size 256 "$@"
