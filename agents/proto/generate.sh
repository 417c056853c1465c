#!/bin/sh
# Regenerates agent_pb2.py, agent_pb2.pyi and agent_pb2_grpc.py from agent.proto.
# Needs a Python with grpcio-tools==1.70.0: PYTHON=/path/to/python agents/proto/generate.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
version=$("$python" -c 'import importlib.metadata as m; print(m.version("grpcio-tools"))')
if [ "$version" != 1.70.0 ]; then
    echo "grpcio-tools is $version; stubs that old boards can load need 1.70.0" >&2
    exit 1
fi
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
# The path below -I becomes the descriptor's name: "agent.proto" alone could clash with another
# package's file in the process-wide descriptor pool.
mkdir -p "$build/hurricane/agents/proto"
cp "$here/agent.proto" "$build/hurricane/agents/proto/"
"$python" -m grpc_tools.protoc -I "$build" --python_out="$build" --pyi_out="$build" \
    --grpc_python_out="$build" hurricane/agents/proto/agent.proto
cd "$build/hurricane/agents/proto"
sed 's/^from hurricane.agents.proto import/from . import/' agent_pb2_grpc.py >"$here/agent_pb2_grpc.py"
cp agent_pb2.py "$here/"
{ echo '# ruff: noqa'; echo '# fmt: off'; cat agent_pb2.pyi; } >"$here/agent_pb2.pyi"
