#!/bin/sh
# Installs an agent for the Neural Compute Stick 2 (docs/ncs2.md).
#
#   sh examples/ncs2_agent.sh FOLDER             an environment there, of this clone
#   sh examples/ncs2_agent.sh FOLDER x.whl       the same, of a wheel
#   sh examples/ncs2_agent.sh --rule             prints the udev rule that lets users open a stick
#
# PYTHON=python3.9 names the Python; OpenVINO 2021.4.2 is there for versions up to 3.9.
set -eu

if [ "${1:-}" = --rule ]; then
    # 2485: before its firmware is loaded; f63b: after.
    for product in 2485 f63b; do
        echo "SUBSYSTEM==\"usb\", ATTRS{idVendor}==\"03e7\", ATTRS{idProduct}==\"$product\"," \
            "GROUP=\"users\", MODE=\"0660\", ENV{ID_MM_DEVICE_IGNORE}=\"1\""
    done
    exit
fi
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
folder=$1
package=${2:-$(dirname "$0")/..}
python=${PYTHON:-python3.9}

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 9))'; then
    echo "Error: $python is no Python 3.9; name one: PYTHON=/path/to/python3.9 sh $0 $*" >&2
    exit 2
fi
"$python" -m venv "$folder"
# In two steps: by its metadata this OpenVINO takes an older numpy than the agent, and it runs
# with the agent's.
"$folder/bin/python" -m pip install "$package[myriad,onnxruntime]"
"$folder/bin/python" -m pip install --no-deps openvino==2021.4.2
"$folder/bin/agent" info
