#!/usr/bin/env bash
# A picture for each of Parti's prompts: --gpt-ckpt FILE --gpt-model GPT-XL --image-size 256 (prompts: their
# evaluations/t2i/PartiPrompts.tsv, or another list by --prompt-csv)
source "$(dirname "$0")/../launch.sh"
launch autoregressive/sample/sample_t2i_ddp.py --vq-ckpt pretrained_models/vq_ds16_t2i.pt \
    --prompt-csv evaluations/t2i/PartiPrompts.tsv --sample-dir samples_parti "$@"
