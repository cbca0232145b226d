#!/usr/bin/env bash
# 50,000 pictures for FID: --gpt-ckpt FILE --gpt-model GPT-B --image-size 384 --image-size-eval 256 --cfg-scale 2.0
source "$(dirname "$0")/../launch.sh"
launch autoregressive/sample/sample_c2i_ddp.py --vq-ckpt pretrained_models/vq_ds16_c2i.pt "$@"
