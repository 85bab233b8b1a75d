#!/usr/bin/env bash
# Installs chromium, with which the server's page is tested, where there is none and apt-get can:
# bash launch/browser.sh
set -euo pipefail
if command -v chromium > /dev/null; then exit; fi
echo 'installing chromium ...'
installed=$(mktemp)
trap 'rm "$installed"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends chromium; } &> "$installed"; then
  echo "chromium: $(tail -1 "$installed"); tests/serving/test_page.py is skipped" >&2
fi
