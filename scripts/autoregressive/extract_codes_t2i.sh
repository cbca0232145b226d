#!/usr/bin/env bash
# Captioned pictures -> codes: --data-path LISTS --code-path DIR --image-size 512
source "$(dirname "$0")/../launch.sh"
launch autoregressive/train/extract_codes_t2i.py --vq-ckpt pretrained_models/vq_ds16_t2i.pt "$@"
