#!/usr/bin/env bash
# Fine-tune the published tokenizer on other pictures: --cloud-save-path DIR --data-path DIR --image-size 512
source "$(dirname "$0")/../launch.sh"
launch tokenizer/tokenizer_image/vq_train.py --finetune --disc-start 0 \
    --vq-ckpt pretrained_models/vq_ds16_c2i.pt --dataset t2i_image "$@"
