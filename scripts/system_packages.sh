#!/usr/bin/env bash
# Debian's FFmpeg libraries (the peer that decode.py compares with needs them) and Chromium (browser tests).
# Where they cannot be had, one line says so and what is left out is left out.
set -uo pipefail

missing=()
ldconfig -p 2>/dev/null | grep -q 'libavcodec\.so' || missing+=(ffmpeg)
command -v chromium >/dev/null || missing+=(chromium)
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
[[ $(id -u) -eq 0 ]] || as_root=(sudo -n)
install() { "${as_root[@]}" apt-get -qq -y "$@" >/dev/null 2>&1; }
if ! { install update && install install --no-install-recommends "${missing[@]}"; }; then
    echo "system packages: ${missing[*]} cannot be installed here; what needs them is skipped"
fi
