#!/usr/bin/env bash
# Go on with a fine-tuning: --vq-ckpt CHECKPOINT --cloud-save-path DIR --data-path DIR --image-size 512
source "$(dirname "$0")/../launch.sh"
launch tokenizer/tokenizer_image/vq_train.py --disc-start 0 --dataset t2i_image "$@"
