#!/usr/bin/env bash
# Train two small classifiers on CIFAR-10 and print their accuracies. The features of A serve as a perceptual distance
# when a tokenizer is trained; B, of another seed and width, scores samples: it never had a say in what it judges.
#
#     bash scripts/train_classifier_cifar10.sh --data-path DIR
#
# --data-path DIR         CIFAR-10: train/ and test/ with class folders; else torchvision fetches its copy into DIR
# --out DIR               where everything goes (results_cifar10); a second call with the same flags goes on
# --max-minutes N         stop after about N minutes with everything saved
# --classifier-steps N    steps of 256 pictures for each classifier (3000)
# --quick                 narrow networks and a few steps: shows that it works, not how well
flags="data-path out max-minutes classifier-steps"
data_path="" out=results_cifar10 max_minutes="" classifier_steps=3000 quick=""
width_a=64 width_b=48 classifier_batch=256
quick_settings() { classifier_steps=20 width_a=16 width_b=12 classifier_batch=32; }
source "$(dirname "$0")/recipe.sh"
options "$@"

classifier() { # NAME WIDTH SEED
    stage "classifier $1: width $2, seed $3"
    train "$out/classifier-$1.safetensors" 0 evaluations/classifier.py --dataset cifar10 --data-path "$data_path" \
        --width "$2" --global-seed "$3" --global-batch-size "$classifier_batch" --max-steps "$classifier_steps" \
        --ckpt-every 500 --keep-ckpts 1 --results-dir "$out" --run-name "classifier-$1" \
        --output "$out/classifier-$1.safetensors"
    [ -e "$out/classifier-$1.safetensors" ] || time_is_over
}
classifier a "$width_a" 0
classifier b "$width_b" 1
echo "classifiers: $out/classifier-a.safetensors (perceptual), $out/classifier-b.safetensors (scores)"
