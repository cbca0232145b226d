#!/usr/bin/env bash
# A picture for each COCO caption: --gpt-ckpt FILE --gpt-model GPT-XL --image-size 256 (prompts:
# evaluations/t2i/coco_captions.csv, or another list by --prompt-csv)
source "$(dirname "$0")/../launch.sh"
launch autoregressive/sample/sample_t2i_ddp.py --vq-ckpt pretrained_models/vq_ds16_t2i.pt \
    --prompt-csv evaluations/t2i/coco_captions.csv --sample-dir samples_coco "$@"
