#!/usr/bin/env bash
# Pictures -> codes: --vq-ckpt FILE --data-path DIR --code-path DIR --ten-crop --crop-range 1.1 --image-size 384
source "$(dirname "$0")/../launch.sh"
launch autoregressive/train/extract_codes_c2i.py "$@"
