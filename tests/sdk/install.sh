#!/bin/sh
# Installs the official SDKs, unmodified, each in an environment of its own: .venvs/ and node_modules/ of the project.
# A second run does nothing. What cannot be had is written to .venvs/<name>.missing with the reason, which the tests
# print when they skip; so this script itself fails only when it is broken.
set -eu

ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python3}
mkdir -p "$ROOT/.venvs"

python_sdk() { # name, requirement
    stamp="$ROOT/.venvs/$1/.installed-$2"
    if [ -e "$stamp" ]; then return; fi
    rm -rf "$ROOT/.venvs/$1" "$ROOT/.venvs/$1.missing"
    if "$PYTHON" -m venv "$ROOT/.venvs/$1" && "$ROOT/.venvs/$1/bin/pip" install --quiet --disable-pip-version-check "$2" \
        >"$ROOT/.venvs/$1.log" 2>&1; then
        touch "$stamp"
    else
        echo "pip could not install $2: $(tail -n 1 "$ROOT/.venvs/$1.log")" >"$ROOT/.venvs/$1.missing"
    fi
}

npm_install() { # log, requirements…
    log=$1
    shift
    npm install --prefix "$ROOT" --no-save --no-package-lock --ignore-scripts --no-audit --no-fund "$@" >"$log" 2>&1
}

node_sdks() {
    old="@runware/sdk-js@1.3.2" new="@runware/sdk"
    have_old="$ROOT/node_modules/@runware/sdk-js/package.json" have_new="$ROOT/node_modules/$new/package.json"
    if [ -e "$have_old" ] && [ -e "$have_new" ]; then return; fi
    rm -f "$ROOT/.venvs/runware-sdk-js.missing" "$ROOT/.venvs/runware-sdk.missing"
    if ! command -v npm >/dev/null 2>&1; then
        echo "Node.js and npm are not installed" | tee "$ROOT/.venvs/runware-sdk-js.missing" >"$ROOT/.venvs/runware-sdk.missing"
        return
    fi
    # Both in one command: npm removes what an earlier one left. Not every registry carries the newer one.
    if npm_install "$ROOT/.venvs/runware-sdk.log" "$old" "$new"; then return; fi
    echo "npm could not install $new: $(grep -m 1 'npm error' "$ROOT/.venvs/runware-sdk.log" || echo 'see the log')" \
        >"$ROOT/.venvs/runware-sdk.missing"
    if [ -e "$have_old" ] || npm_install "$ROOT/.venvs/runware-sdk-js.log" "$old"; then return; fi
    echo "npm could not install $old: $(tail -n 1 "$ROOT/.venvs/runware-sdk-js.log")" >"$ROOT/.venvs/runware-sdk-js.missing"
}

python_sdk runware-python runware==0.5.24
python_sdk runware-sdk-python runware-sdk==1.8.0
node_sdks
