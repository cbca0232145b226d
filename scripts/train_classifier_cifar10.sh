#!/usr/bin/env bash
# Train two small classifiers on CIFAR-10 and print their accuracies. The features of A serve as a perceptual distance
# when a tokenizer is trained; B, of another seed and width, scores samples: it never had a say in what it judges.
#
#     bash scripts/train_classifier_cifar10.sh --data-path DIR
#
# --data-path DIR         CIFAR-10: train/ and test/ with class folders; else torchvision fetches its copy into DIR
# --out DIR               where everything goes (results_cifar10); a second call with the same flags goes on
# --max-minutes N         stop after about N minutes with everything saved
# --classifier-steps N    steps of 256 pictures for each classifier (3000; on CPUs 1500 for A and 2000 for B)
# --only NAME             a or b alone
# --quick                 narrow networks and a few steps: shows that it works, not how well
flags="data-path out max-minutes classifier-steps only"
data_path="" out=results_cifar10 max_minutes="" classifier_steps="" only="" quick=""
width_a=64 width_b=48 steps_a=3000 steps_b=3000 classifier_batch=256
quick_settings() { classifier_steps=20 width_a=16 width_b=12 classifier_batch=32; }
source "$(dirname "$0")/recipe.sh"
options "$@"
[[ -z $only || $only = [ab] ]] || fail "--only $only: a or b"
[ -n "$quick" ] || on_gpu || { width_a=32 steps_a=1500 steps_b=2000; }

classifier() { # NAME WIDTH STEPS SEED
    [ "${only:-$1}" = "$1" ] || return 0
    stage "classifier $1: width $2, seed $4"
    train "$out/classifier-$1.safetensors" 0 evaluations/classifier.py --dataset cifar10 --data-path "$data_path" \
        --width "$2" --max-steps "${classifier_steps:-$3}" --global-seed "$4" --global-batch-size "$classifier_batch" \
        --ckpt-every 500 --keep-ckpts 1 --results-dir "$out" --run-name "classifier-$1" \
        --output "$out/classifier-$1.safetensors"
    [ -e "$out/classifier-$1.safetensors" ] || time_is_over
}
classifier a "$width_a" "$steps_a" 0
classifier b "$width_b" "$steps_b" 1
echo "classifiers: $out/classifier-a.safetensors (perceptual), $out/classifier-b.safetensors (scores)"
