#!/usr/bin/env bash
# Installs Chromium by apt where there is none and the system lets us, for tests/app/test_browser.py.
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing Chromium for the app's browser test"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
    >/dev/null 2>&1 && exit 0
fi
echo "no Chromium: the app's browser test will be skipped" >&2
