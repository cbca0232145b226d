#!/usr/bin/env bash
# Several nodes, tried on one Linux machine: two network namespaces with a cable between them, two training processes in
# each, started by torchrun and as srun would, and then killed one node at a time. About 2 minutes on 2 idle cores.
#
#     sudo bash scripts/try_nodes.sh              # writes benchmarks/results/nodes_in_namespaces.md
source "$(dirname "$0")/launch.sh"
report=${1:-benchmarks/results/nodes_in_namespaces.md}
fail() { echo "error: $*" >&2; exit 2; }
command -v ip > /dev/null || fail "there is no command ip; install it, such as by apt-get install iproute2"
[ "$(id -u)" = 0 ] || fail "network namespaces are made by root alone: sudo bash scripts/try_nodes.sh"

out=$(mktemp -d)
space() { echo "llamagen-$$-$1"; }
clean() {
    for node in 0 1; do
        ip netns pids "$(space $node)" 2> /dev/null | xargs -r kill -9
        ip netns del "$(space $node)" 2> /dev/null || true
        rm -rf "/etc/netns/$(space $node)"
    done
    rm -rf "$out"
}
trap clean EXIT
trap 'exit 130' INT TERM

for node in 0 1; do
    ip netns add "$(space $node)" || fail "this machine (a container without rights?) does not let root make namespaces"
    mkdir -p "/etc/netns/$(space $node)"  # what is in there is seen in the namespace as if it were in /etc
    printf '127.0.0.1 localhost\n10.77.0.1 node0\n10.77.0.2 node1\n' > "/etc/netns/$(space $node)/hosts"
done
ip link add eth0 netns "$(space 0)" type veth peer name eth0 netns "$(space 1)"
for node in 0 1; do
    ip -n "$(space $node)" addr add "10.77.0.$((node + 1))/24" dev eth0
    ip -n "$(space $node)" link set eth0 up
    ip -n "$(space $node)" link set lo up
done

# on NODE COMMAND...: there, with a host name of its own.
on() {
    local node=$1
    shift
    ip netns exec "$(space "$node")" unshare --uts sh -c 'hostname "$0" && exec "$@"' "node$node" \
        env GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= "$@"
}

# train NAME: the words of the training command.
train() {
    entry=(autoregressive/train/train_c2i_fsdp.py --code-path "$out/codes" --gpt-model GPT-1M --num-classes 10
        --global-batch-size 8 --max-steps 40 --ckpt-every 10 --log-every 1 --preview-every 0 --num-workers 0
        --device cpu --mixed-precision none --dropout-p 0 --token-dropout-p 0 --lr 1e-3 --data-parallel hsdp
        --results-dir "$out" --run-name "$1" --resume)
}

under_torchrun() {  # NODE NAME
    train "$2"
    # Without the variable the torchrun of a standing node does not tell one that comes anew where rank 0 is.
    on "$1" env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 python3 -m torch.distributed.run \
        --nnodes=2 --nproc_per_node=2 --rdzv-backend=c10d --rdzv-endpoint=node0:29500 \
        --rdzv-id="$2" --max-restarts=3 "${entry[@]}" >> "$out/$2.$1.txt" 2>&1
}

under_srun() {  # RANK NAME
    train "$2"
    on $(($1 / 2)) env SLURM_JOB_ID=1 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_STEP_TASKS_PER_NODE="2(x2)" \
        SLURM_STEP_NODELIST="node[0-1]" SLURM_PROCID="$1" SLURM_LOCALID=$(($1 % 2)) SLURM_NODEID=$(($1 / 2)) \
        python3 "${entry[@]}" >> "$out/$2.$1.txt" 2>&1
}

# all LAUNCHER NAME NUMBER...: at once; ends when all have.
all() {
    local launcher=$1 name=$2 jobs=() job
    for job in "${@:3}"; do
        "$launcher" "$job" "$name" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed "$name"; done
}

failed() {
    tail -n 30 "$out/$1".*txt >&2
    fail "the run '$1' failed"
}

# lose STEP WHAT: once that step is done, kill -9 of node 1's training processes, or of everything on it.
lose() {
    local pid killed=0 deadline=$((SECONDS + 200))
    until grep -qs "\"step\": $1," "$out/killed/metrics.jsonl"; do
        [ $SECONDS -lt $deadline ] || failed killed
        sleep 0.05
    done
    for pid in $(ip netns pids "$(space 1)"); do
        [ "$2" = everything ] || ! grep -q torch.distributed.run "/proc/$pid/cmdline" || continue
        kill -9 "$pid" && killed=$((killed + 1))
    done
    echo "--- kill -9 of $2 on node 1 ($killed processes)" | tee -a "$out/killed/log.txt"
}

echo "one process ..."
python3 -c "from pathlib import Path; from benchmarks.kills_trial import write_codes; write_codes(Path('$out/codes'))"
train one
CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1 python3 "${entry[@]}" > "$out/one.txt" 2>&1 || failed one
echo "two nodes under torchrun ..."
all under_torchrun torchrun 0 1
carried=$(on 1 cat /sys/class/net/eth0/statistics/tx_bytes)
echo "two nodes as srun starts them ..."
all under_srun srun 0 1 2 3
echo "two nodes under torchrun, killed ..."
under_torchrun 0 killed & first=$!
under_torchrun 1 killed & second=$!
lose 15 "the training processes"
lose 32 everything
wait $second || echo "--- torchrun of node 1 is started again" | tee -a "$out/killed/log.txt"
all under_torchrun killed 1
wait $first || failed killed

python3 - "$out" "$report" "$carried" << 'REPORT'
import json
import sys
from datetime import date
from pathlib import Path

import torch

from engine.checkpoint import read_file
from engine.sharded_checkpoint import read_tensors

out, report, carried = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def losses(name):
    return [json.loads(line)["loss"] for line in (out / name / "metrics.jsonl").read_text().splitlines()]


def saved(name):
    return max((out / name / "checkpoints").glob("0000040*"))


def against(name, other):
    """Largest relative difference of a loss, largest difference of a weight."""
    assert len(losses(name)) == len(losses(other)) == 40
    loss = max(abs(a / b - 1) for a, b in zip(losses(name), losses(other)))
    one, two = (read_file(saved(each))["model"] for each in (name, other))
    return loss, max(float((one[key] - two[key]).abs().max()) for key in two)


whole, killed = read_tensors(saved("torchrun")), read_tensors(saved("killed"))
equal = whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)
rows = [("two nodes under torchrun", "torchrun", "one"), ("two nodes as srun starts them", "srun", "one"),
        ("two nodes under torchrun, killed", "killed", "torchrun")]  # fmt: skip
found = {name: against(name, other) for _, name, other in rows}
parameters = sum(value.numel() for value in read_file(saved("one"))["model"].values())
story = (out / "killed/log.txt").read_text().replace(f"{out}/", "").splitlines()
words = ("---", "saved", "resumed", "parameters")
text = f"""# Several nodes in network namespaces

{date.today()}, torch {torch.__version__}: `sudo bash scripts/try_nodes.sh`

Two network namespaces with a pair of veth devices between them, each with a host name and an address of its own, two
gloo processes in each: train_c2i_fsdp.py --data-parallel hsdp, GPT-1M, 40 steps of 8 pictures, a checkpoint every 10.
In the first of the runs one node sent {carried / 2**20:.0f} MiB to the other; gradients in float32, which alone should travel between
nodes, are {40 * 4 * parameters / 2**20:.0f} MiB in 40 steps.

| run | last loss | beside | loss, relative | weights |
| --- | ---: | --- | ---: | ---: |
| one process | {losses("one")[-1]:.6f} | | | |
"""
for title, name, other in rows:
    beside = "one process" if other == "one" else "the run that was left alone"
    text += f"| {title} | {losses(name)[-1]:.6f} | {beside} | {found[name][0]:.1e} | {found[name][1]:.1e} |\n"
text += f"""
The last two columns are the largest differences. Weights and moments of the killed run are {"" if equal else "**not** "}those of
the run that was left alone, to the bit. Its log:

""" + "".join(f"    {line}\n" for line in story if any(word in line for word in words))
report.parent.mkdir(parents=True, exist_ok=True)
report.write_text(text)
print(text)
sys.exit(not equal or max(loss for loss, _ in found.values()) > 1e-4)
REPORT
