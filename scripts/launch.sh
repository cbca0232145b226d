# Sourced by the shell faces of the entries: `launch ENTRY ARGS...` runs it on this machine alone (all its GPUs, or one
# process on a CPU), or as the environment says: nnodes, nproc_per_node, node_rank, master_addr, master_port.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -x .venv/bin/python ] || export PATH="$PWD/.venv/bin:$PATH"

launch() {
    local gpus  # apart from its value: `local` would hide a failing python3
    gpus=${nproc_per_node:-$(python3 -c 'import torch; print(torch.cuda.device_count() or 1)')}
    if [ "${nnodes:-1}" = 1 ] && [ "$gpus" = 1 ]; then
        exec python3 "$@"
    fi
    local where=(--standalone)
    if [ "${nnodes:-1}" != 1 ] || [ -n "${master_addr:-}${master_port:-}" ]; then
        where=(--nnodes="${nnodes:-1}" --node_rank="${node_rank:-0}" --master_addr="${master_addr:-127.0.0.1}" --master_port="${master_port:-29500}")
    fi
    exec python3 -m torch.distributed.run "${where[@]}" --nproc_per_node="$gpus" "$@"
}
