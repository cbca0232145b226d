#!/usr/bin/env bash
# The demo's models, from CIFAR-10's pictures to scored samples: a classifier whose features train a tokenizer (8 x 8
# codes out of 1024), codes, a GPT, another classifier, 1,000 samples, and the share of them that it reads as the class
# asked for. The pair is left in OUT/demo, in float16. On one GPU, or in about four hours on 2 CPU cores.
#
#     bash scripts/train_demo_cifar10.sh --data-path DIR --max-minutes 30
#
# --data-path DIR         CIFAR-10: train/ and test/ with class folders; else torchvision fetches its copy into DIR
# --out DIR               where everything goes (results_cifar10); a second call with the same flags goes on
# --max-minutes N         stop after about N minutes with everything saved. A stage gets all the time that is
#                         left, and the next begins when it is done; but the GPT leaves a tenth of N (at least a
#                         minute) to sample from what there is of it
# --gpt-model NAME        GPT-5M
# --classifier-steps N    steps of 256 pictures for each classifier (3000; on CPUs 1500 and 2000)
# --tokenizer-steps N     steps of 128 pictures (8000; on CPUs 4000 of 64); the discriminator takes part in the last 60 %
# --gpt-steps N           steps of 256 pictures (12000; on CPUs 6000 of 128, without dropout)
# --samples N             how many are scored (1000)
# --cfg-scale X           guidance (4.0, the samplers' own)
# --quick                 narrow classifiers and a few steps: shows that it works, not how well
flags="data-path out max-minutes gpt-model classifier-steps tokenizer-steps gpt-steps samples cfg-scale"
data_path="" out=results_cifar10 max_minutes="" gpt_model=GPT-5M quick=""
classifier_steps="" tokenizer_steps="" gpt_steps="" samples=1000 cfg_scale=4.0
quick_settings() { classifier_steps=20 tokenizer_steps=20 gpt_steps=20 samples=50 tokenizer_batch=32 gpt_batch=32; }
source "$(dirname "$0")/recipe.sh"
options "$@"
if on_gpu; then
    : "${tokenizer_steps:=8000}" "${tokenizer_batch:=128}" "${gpt_steps:=12000}" "${gpt_batch:=256}"
    gpt_flags=(--lr 1e-3)
else # few passes over the data: nothing is learnt by heart, and dropout takes a fifth of the time
    : "${tokenizer_steps:=4000}" "${tokenizer_batch:=64}" "${gpt_steps:=6000}" "${gpt_batch:=128}"
    gpt_flags=(--lr 2e-3 --dropout-p 0 --token-dropout-p 0)
    [ -n "$quick" ] || gpt_flags+=(--compile --compile-on-cpu)
fi

classifier() { # NAME
    bash scripts/train_classifier_cifar10.sh --data-path "$data_path" --out "$out" --only "$1" ${quick:+--quick} \
        ${classifier_steps:+--classifier-steps "$classifier_steps"} \
        ${budget:+--max-minutes "$(awk "BEGIN { print ($(left) > 0 ? $(left) : 0) / 60 }")"}
    [ -e "$out/classifier-$1.safetensors" ] || exit 0
}
classifier a

stage "tokenizer: 32-px pictures -> 8 x 8 codes out of 1024"
vq=$out/tokenizer/checkpoints/$(printf '%07d' "$tokenizer_steps").pt
train "$vq" 0 tokenizer/tokenizer_image/vq_train.py --dataset cifar10 --data-path "$data_path" --image-size 32 \
    --vq-model VQ-4-small --perceptual-net "$out/classifier-a.safetensors" --disc-start $((tokenizer_steps * 2 / 5)) \
    --disc-weight 0.1 --disc-adaptive-weight --lr 4e-4 --lr-schedule cosine --lr-final 0.02 --warmup-steps 200 \
    --global-batch-size "$tokenizer_batch" --max-steps "$tokenizer_steps" --ckpt-every 1000 --keep-ckpts 1 \
    --results-dir "$out" --run-name tokenizer
[ -e "$vq" ] || time_is_over

stage "codes of the training pictures and of their mirror images"
bounded python3 autoregressive/train/extract_codes_c2i.py --dataset cifar10 --data-path "$data_path" --image-size 32 \
    --vq-ckpt "$vq" --code-path "$out/codes" --batch-size 256

stage "$gpt_model on those codes"
reserve=$((${budget:-0} > 600 ? budget / 10 : 60))
train "$out/$gpt_model/checkpoints/$(printf '%07d' "$gpt_steps").pt" "$reserve" \
    autoregressive/train/train_c2i.py --code-path "$out/codes" --gpt-model "$gpt_model" --vq-ckpt "$vq" --ema \
    --ema-decay 0.999 "${gpt_flags[@]}" --lr-schedule cosine --lr-final 0.02 --warmup-steps 500 --val-fraction 0.02 \
    --global-batch-size "$gpt_batch" --max-steps "$gpt_steps" --ckpt-every 1000 --keep-ckpts 1 --num-workers 4 \
    --results-dir "$out" --run-name "$gpt_model"
gpt=$(newest "$out/$gpt_model")
[ -n "$gpt" ] || time_is_over

classifier b

stage "$samples samples of $gpt, in equal parts of all classes"
sample_dir=$out/samples/$gpt_model-$(basename "$gpt" .pt)-cfg-$cfg_scale # one run of the sampler, so one npz
bounded python3 autoregressive/sample/sample_c2i_ddp.py --gpt-ckpt "$gpt" --vq-ckpt "$vq" --use-ema \
    --cfg-scale "$cfg_scale" --num-fid-samples "$samples" --balance --image-size-eval 32 --per-proc-batch-size 250 \
    --sample-dir "$sample_dir"

stage "score, pictures, curves"
python3 autoregressive/sample/sample_c2i.py --gpt-ckpt "$gpt" --vq-ckpt "$vq" --use-ema --top-k 0 \
    --cfg-scale "$cfg_scale" --labels airplane automobile bird cat deer dog frog horse ship truck \
    --num-images 80 --per-row 10 --output "$out/samples.png"
python3 evaluations/score.py --classifier "$out/classifier-b.safetensors" --samples "$sample_dir"/*.npz \
    --dataset cifar10 --data-path "$data_path" --output "$out/score.json"
python3 evaluations/plot_losses.py --runs tokenizer="$out/tokenizer" gpt="$out/$gpt_model" --output "$out/losses.png" ||
    echo "$out/losses.png: comes when the GPT has logged its first steps"
rm -rf "$out/demo" # as it ships under pretrained_models/, where its model card says more
for part in "gpt $gpt --use-ema" "tokenizer $vq --round-codebook"; do
    read -r name file flags <<< "$part"
    python3 scripts/export.py --ckpt "$file" $flags --precision fp16 --output "$out/demo/$name"
done
echo "pictures: $out/samples.png (a class a column), $out/tokenizer/previews (originals above); curves: $out/losses.png"
