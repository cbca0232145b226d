#!/usr/bin/env bash
# From nothing to pictures drawn from prompts: handwritten digits in one colour on a ground of another, with captions
# such as "a large red seven on a blue background". A text encoder, a tokenizer and a GPT are trained by the commands, flags
# and formats of a big run; at the end 400 prompts are sampled and it is counted how many pictures show the asked
# digit, colour and ground. About 13 minutes on 2 CPU cores. Everything is left in quickstart_t2i/; a stopped run goes on
# when it is started again.
source "$(dirname "$0")/environment.sh"
out=${1:-quickstart_t2i}
data=$out/data

step "1/7  pictures, captions and prompts"
python3 dataset/write_coloured_digits.py --output "$data" --train-pictures 36000

step "2/7  a text encoder: a small T5 that learns what the words say of one another"
python3 language/train_small_t5.py --data-path "$data/lists/train.jsonl" --output "$out/t5/small"

step "3/7  a tokenizer: 16-px pictures -> 4 x 4 codes out of 512"
python3 tokenizer/tokenizer_image/vq_train.py --dataset jsonl --data-path "$data/lists/train.jsonl" --image-size 16 \
    --vq-model VQ-4-tiny --codebook-size 512 --perceptual-weight 0 --disc-weight 0 --reconstruction-loss l1 \
    --entropy-loss-ratio 0.03 --lr 4e-3 --lr-schedule cosine --warmup-steps 50 --global-batch-size 64 --max-steps 1000 \
    --log-every 100 --ckpt-every 500 --keep-ckpts 1 --num-workers 1 --results-dir "$out" --run-name tokenizer --resume
vq=$out/tokenizer/checkpoints/0001000.pt

step "4/7  the pictures' codes"
python3 autoregressive/train/extract_codes_t2i.py --data-path "$data/lists/train.jsonl" --vq-ckpt "$vq" --image-size 16 \
    --code-path "$out/codes" --batch-size 256 --num-workers 1

step "5/7  the captions' features"
python3 language/extract_t5_feature.py --data-path "$data/lists/train.jsonl" --t5-model-path "$out/t5" \
    --t5-model-type small --t5-path "$out/features" --batch-size 256 --num-workers 1

step "6/7  a GPT on codes and features"
python3 autoregressive/train/train_t2i.py --data-path "$data/lists/train.jsonl" --code-path "$out/codes" \
    --t5-feat-path "$out/features" --image-size 16 --gpt-model GPT-1M --no-compile --mixed-precision none \
    --lr 3e-3 --lr-schedule cosine --warmup-steps 100 --global-batch-size 64 --max-steps 3000 --val-fraction 0.02 \
    --val-every 500 --log-every 100 --ckpt-every 500 --keep-ckpts 1 --num-workers 1 --results-dir "$out" --run-name gpt \
    --dropout-p 0 --token-dropout-p 0 --resume
gpt=$out/gpt/checkpoints/0003000.pt

step "7/7  400 prompts, and what the pictures show"
python3 autoregressive/sample/sample_t2i_ddp.py --gpt-ckpt "$gpt" --vq-ckpt "$vq" --t5-path "$out/t5" \
    --t5-model-type small --prompt-csv "$data/prompts.tsv" --num-fid-samples 400 --per-proc-batch-size 200 \
    --cfg-scale 1.5 --top-k 0 --top-p 0.5 --sample-dir "$out/samples"
python3 evaluations/plot_losses.py --runs tokenizer="$out/tokenizer" gpt="$out/gpt" --output "$out/losses.png"
python3 evaluations/score_coloured_digits.py --samples "$(ls -td "$out"/samples/*/ | head -n 1)" --real "$data" \
    --least 0.85 --output "$out/score.json" --grid "$out/samples.png"
printf '\nPictures: %s/samples.png, %s/losses.png (%d s)\n' "$out" "$out" $((SECONDS - began))
