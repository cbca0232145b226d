#!/usr/bin/env bash
# Captions of stage 1 -> features: --data-path LISTS --t5-path DIR --data-start 0 --data-end 99
source "$(dirname "$0")/../launch.sh"
launch language/extract_t5_feature.py --caption-key blip "$@"
