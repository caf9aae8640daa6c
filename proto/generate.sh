#!/bin/sh
# Regenerates the committed stubs beside the .proto files. Uses the pinned grpcio-tools of the `dev` extra.
# Only service.proto has services, so only it gets gRPC stubs: federation/ and security/ import messages without gRPC.
set -eu
cd "$(dirname "$0")"
python="${PYTHON:-../.venv/bin/python}"
export PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
out="${1:-.}"
"$python" -m grpc_tools.protoc -I. --python_out="$out" --mypy_out="quiet:$out" consilium/v1/*.proto
"$python" -m grpc_tools.protoc -I. --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" consilium/v1/service.proto
