#!/bin/sh
# The 32k recipe with ordinary positions, to compare V2PE with; everything else is the same.
#
#   PARTITION=... GPUS=32 sh shell/internlm2_2b/baseline.sh [FLAGS...]
set -eu
export NAME="${NAME:-baseline}" ROPE_POS_ID_VERSION=default
exec sh "$(dirname "$0")/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh" "$@"
