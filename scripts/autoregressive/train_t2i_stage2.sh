#!/usr/bin/env bash
# Stage 2, 512 px, 30 % short captions: --cloud-save-path DIR --data-path LISTS --t5-feat-path FEATURES
# --short-t5-feat-path FEATURES_SHORT --gpt-model GPT-XL --gpt-ckpt STAGE_1
source "$(dirname "$0")/../launch.sh"
launch autoregressive/train/train_t2i.py --vq-ckpt pretrained_models/vq_ds16_t2i.pt --dataset t2i --image-size 512 "$@"
