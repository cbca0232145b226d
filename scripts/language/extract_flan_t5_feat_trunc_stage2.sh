#!/usr/bin/env bash
# Short captions of stage 2, the first sentence of each -> features: --data-path LISTS --t5-path DIR --data-start 0 --data-end 99
source "$(dirname "$0")/../launch.sh"
launch language/extract_t5_feature.py --caption-key llava --trunc-caption "$@"
