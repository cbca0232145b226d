#!/usr/bin/env bash
# Write the originals that reconstructions are scored against: --data-path IMAGENET/val --image-size 256
source "$(dirname "$0")/../launch.sh"
launch tokenizer/validation/val_ddp.py "$@"
