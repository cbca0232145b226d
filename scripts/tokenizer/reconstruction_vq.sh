#!/usr/bin/env bash
# Score a tokenizer by its reconstructions: --data-path IMAGENET/val --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt
source "$(dirname "$0")/../launch.sh"
launch tokenizer/tokenizer_image/reconstruction_vq_ddp.py "$@"
