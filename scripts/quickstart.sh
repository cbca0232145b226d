#!/usr/bin/env bash
# From nothing to sampled pictures: sets the environment up, samples the small pair of models that ships, then does the
# main job on the handwritten digits that scikit-learn ships, with the same commands, flags and formats as a big run.
# About 4 minutes on 2 CPU cores.
# Pictures, curves and the score are left in quickstart/; a stopped run goes on when it is started again.
source "$(dirname "$0")/environment.sh"
out=${1:-quickstart}

step "0/5  pictures from the models that ship, trained on CIFAR-10"
python3 autoregressive/sample/sample_c2i.py --output "$out/demo.png"

step "1/5  a tokenizer: 32-px pictures -> 4 x 4 codes out of 256"
python3 tokenizer/tokenizer_image/vq_train.py --dataset digits --image-size 32 --vq-model VQ-8-tiny \
    --codebook-size 256 --perceptual-weight 0 --disc-weight 0 --lr 2e-3 --lr-schedule cosine --warmup-steps 20 \
    --global-batch-size 32 --max-steps 400 --log-every 50 --ckpt-every 200 --keep-ckpts 1 --preview-every 200 \
    --num-workers 1 --results-dir "$out" --run-name tokenizer --resume
vq=$out/tokenizer/checkpoints/0000400.pt

step "2/5  codes of five crops of every training picture"
python3 autoregressive/train/extract_codes_c2i.py --dataset digits --image-size 32 --ten-crop --crop-range 1.1 \
    --vq-ckpt "$vq" --code-path "$out/codes" --batch-size 128 --num-workers 1

step "3/5  a GPT on those codes"
python3 autoregressive/train/train_c2i.py --code-path "$out/codes" --gpt-model GPT-1M --vq-ckpt "$vq" --no-compile \
    --lr 3e-3 --lr-schedule cosine --warmup-steps 50 --global-batch-size 64 --max-steps 1400 --val-fraction 0.05 \
    --log-every 100 --ckpt-every 700 --keep-ckpts 1 --preview-every 700 --val-every 100 --num-workers 1 \
    --results-dir "$out" --run-name gpt --resume
gpt=$out/gpt/checkpoints/0001400.pt

step "4/5  sampling: 8 of each digit, then 1,000 for the score"
python3 autoregressive/sample/sample_c2i.py --gpt-ckpt "$gpt" --vq-ckpt "$vq" --cfg-scale 2 --top-k 0 --top-p 0.9 \
    --labels 0 1 2 3 4 5 6 7 8 9 --num-images 80 --per-row 10 --output "$out/samples.png"
python3 autoregressive/sample/sample_c2i_ddp.py --gpt-ckpt "$gpt" --vq-ckpt "$vq" --cfg-scale 2 --top-p 0.9 --balance \
    --image-size-eval 32 --num-fid-samples 1000 --per-proc-batch-size 250 --sample-dir "$out/samples"

step "5/5  how good is it?"
cp "$(ls "$out"/tokenizer/previews/*.png | tail -n 1)" "$out/reconstructions.png"
python3 evaluations/plot_losses.py --runs tokenizer="$out/tokenizer" gpt="$out/gpt" --output "$out/losses.png"
python3 evaluations/score_digits.py --samples "$out"/samples/*.npz
printf '\nPictures: %s/samples.png, %s/reconstructions.png (originals above), %s/losses.png (%d s)\n' \
    "$out" "$out" "$out" $((SECONDS - began))
